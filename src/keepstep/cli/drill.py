"""``keepstep drill``: rehearse failures with real jobs on this machine.

Of the drills package only the catalog is imported until one is run.
"""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from keepstep.cli.output import Flag, print_json, print_table
from keepstep.drills.catalog import SMOKE, catalog, select
from keepstep.errors import ExitCode

drill = App(name="drill", help="Rehearse failures: start real jobs, kill them, judge.")

Directory = Annotated[Path | None, Parameter(show_default=False)]
Uri = Annotated[str | None, Parameter(show_default=False)]


@drill.command(name="list")
def list_drills(*, json: Flag = False) -> None:
    """List the drills there are.

    Parameters
    ----------
    json
        Print JSON.
    """
    if json:
        print_json({"drills": [{"name": d.name, "description": d.description} for d in catalog()]})
        return
    print_table([("drill", "what happens"), *((d.name, d.description) for d in catalog())])
    print(f"\nsmoke: {', '.join(SMOKE)}")


@drill.command(name="run")
def run_drills(
    *names: str,
    dir: Directory = None,
    uri: Uri = None,
    keep: Flag = False,
    json: Flag = False,
) -> ExitCode:
    """Run drills; exit 1 if one fails.

    Parameters
    ----------
    names
        Names, also with wildcards ("kill-*-ddp"), or smoke (the default) or all.
    dir
        Where runs and logs are put; a temporary directory if left out.
    uri
        Below which the runs are kept instead, for instance s3://bucket/drills.
    keep
        Keep what drills that pass have left; what a failure needs is kept in any case.
    json
        Print JSON, at the end.
    """
    drills = select(names)
    from keepstep.drills import report
    from keepstep.drills.perform import Ground

    directory = dir or Path(tempfile.mkdtemp(prefix="keepstep-drill-"))
    ground = Ground(directory, uri)
    outcomes = []
    with _interruptible():
        for each in drills:
            outcome = ground.perform(each)
            outcomes.append(outcome)
            if not json:
                print(report.line(outcome), flush=True)
            if outcome.is_good and not keep:
                ground.discard(outcome)
    are_good = all(outcome.is_good for outcome in outcomes)
    if are_good and not keep:
        ground.discard_references()
        if dir is None:
            directory.rmdir()
    if json:
        print_json(report.document(outcomes))
    else:
        print()
        print_table(report.rows(outcomes))
        print(f"\n{report.summary(outcomes)}")
    return ExitCode.OK if are_good else ExitCode.ERROR


@contextmanager
def _interruptible() -> Iterator[None]:
    """Take what a scheduler sends as an interruption, so that no job outlives this command."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
