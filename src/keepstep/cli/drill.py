"""``keepstep drill``: rehearse failures with real jobs on this machine.

Of the drills package only the catalog is imported until one is run.
"""

import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from keepstep.cli.output import Flag, print_json, print_table
from keepstep.drills.catalog import SMOKE, catalog, select
from keepstep.drills.scenario import Drill
from keepstep.errors import ExitCode

if TYPE_CHECKING:
    from keepstep.drills.perform import Ground
    from keepstep.drills.record import Record

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
        listed = [
            {"name": d.name, "family": d.family, "description": d.description} for d in catalog()
        ]
        print_json({"drills": listed})
        return
    rows = [(d.name, d.family, d.description) for d in catalog()]
    print_table([("drill", "family", "what happens"), *rows])
    print(f"\nsmoke: {', '.join(SMOKE)}")


@drill.command(name="run")
def run_drills(
    *names: str,
    dir: Directory = None,
    uri: Uri = None,
    seed: int = 0,
    keep: Flag = False,
    json: Flag = False,
) -> ExitCode:
    """Run drills; exit 1 if one fails.

    Parameters
    ----------
    names
        Names, also with wildcards ("kill-*-ddp"), or families (D12), or smoke (the default) or all.
    dir
        Where runs, logs and records are put; a temporary directory if left out.
    uri
        Below which the runs are kept instead, for instance s3://bucket/drills.
    seed
        Decides on what a drill leaves to chance.
    keep
        Keep what drills that pass have left; what a failure needs is kept in any case.
    json
        Print JSON, at the end.
    """
    drills = select(names)
    from keepstep.drills.perform import Ground

    directory = _directory(dir)
    records = _perform(Ground(directory, uri, seed=seed), drills, keep=keep, is_quiet=json)
    _remove_if_empty(directory if dir is None else None)
    return _tell(records, json=json)


@drill.command(name="judge")
def judge_records(*files: Path, json: Flag = False) -> ExitCode:
    """Judge drills again by their records; exit 1 if one fails.

    Parameters
    ----------
    files
        Records, or the directories they are in.
    json
        Print JSON.
    """
    from keepstep.drills.perform import judged
    from keepstep.drills.record import read_record

    return _tell([judged(read_record(file)) for file in files], json=json)


@drill.command(name="replay")
def replay(
    file: Path, *, dir: Directory = None, uri: Uri = None, keep: Flag = False, json: Flag = False
) -> ExitCode:
    """Perform the drill of a record again: the same acts, seed and settings.

    Parameters
    ----------
    file
        The record, or the directory it is in.
    dir, uri, keep, json
        As for `keepstep drill run`.
    """
    from keepstep.drills.perform import Ground
    from keepstep.drills.record import read_record

    record = read_record(file)
    directory = _directory(dir)
    ground = Ground(directory, uri, settings=record.settings, seed=record.seed)
    records = _perform(ground, [record.drill], keep=keep, is_quiet=json)
    _remove_if_empty(directory if dir is None else None)
    return _tell(records, json=json)


def _perform(
    ground: "Ground", drills: Sequence[Drill], *, keep: bool, is_quiet: bool
) -> list["Record"]:
    """Perform drills in turn; what nobody needs any more is removed."""
    from keepstep.drills import report

    records = []
    with _interruptible():
        for each in drills:
            record = ground.perform(each)
            records.append(record)
            if not is_quiet:
                print(report.line(record), flush=True)
            if record.is_good and not keep:
                ground.discard(record)
    if all(record.is_good for record in records) and not keep:
        ground.discard_references()
    return records


def _tell(records: Sequence["Record"], *, json: bool) -> ExitCode:
    """Print every verdict; how the command ends."""
    from keepstep.drills import report

    if json:
        print_json(report.document(records))
    else:
        print()
        print_table(report.rows(records))
        print(f"\n{report.summary(records)}")
    are_good = all(record.is_good for record in records)
    return ExitCode.OK if are_good else ExitCode.ERROR


def _directory(dir: Path | None) -> Path:
    return dir or Path(tempfile.mkdtemp(prefix="keepstep-drill-"))


def _remove_if_empty(directory: Path | None) -> None:
    if directory is not None and not any(directory.iterdir()):
        directory.rmdir()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Take what a scheduler sends as an interruption, so that no job outlives this command."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
