"""``keepstep drill``: rehearse failures with real jobs on this machine.

Of the drills package only the catalog is imported until one is run.
"""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from keepstep.cli.drilling import (
    check_reports,
    choose,
    perform_all,
    tell,
    working_directory,
)
from keepstep.cli.output import Flag, UsageError, print_json, print_table
from keepstep.drills.catalog import SABOTAGED, SMOKE, catalog
from keepstep.drills.sabotage import SABOTAGES, spoiling
from keepstep.errors import ExitCode

drill = App(name="drill", help="Rehearse failures: start real jobs, kill them, judge.")

Directory = Annotated[Path | None, Parameter(show_default=False)]
Text = Annotated[str | None, Parameter(show_default=False)]
File = Annotated[Path | None, Parameter(show_default=False)]


@drill.command(name="list")
def list_drills(*, sabotages: Flag = False, json: Flag = False) -> None:
    """List the drills there are.

    Parameters
    ----------
    sabotages
        List what --sabotage can break instead.
    json
        Print JSON.
    """
    if sabotages:
        _list_sabotages(json=json)
        return
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
    uri: Text = None,
    seed: int = 0,
    sabotage: Text = None,
    recipe: Directory = None,
    steps: Annotated[int | None, Parameter(show_default=False)] = None,
    keep: Flag = False,
    html: File = None,
    junit: File = None,
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
    sabotage
        Break a part of every restore on purpose: the drill has to fail, and to name it. Without
        names, one drill is run.
    recipe
        Your own recipe (TOML) in place of a small model.
    steps
        So many steps of it; saves are spread as the recipe spreads them.
    keep
        Keep what drills that pass have left; what a failure needs is kept in any case.
    html
        Write a page with charts to this file.
    junit
        Write a report in the format of JUnit to this file.
    json
        Print JSON, at the end.
    """
    check_reports(html, junit)
    if sabotage is not None:
        spoiling(sabotage)
    if steps is not None and recipe is None:
        raise UsageError("--steps is for --recipe: the drills' own model has its length")
    wanted = names or ((SABOTAGED,) if sabotage else ())
    drills, unfit, settings = choose(wanted, recipe, steps)
    from keepstep.drills.perform import Ground

    with working_directory(dir) as directory:
        ground = Ground(directory, uri, settings=settings, seed=seed, sabotage=sabotage)
        records = [*unfit, *perform_all(ground, drills, keep=keep, is_quiet=json)]
    return tell(records, json=json, html=html, junit=junit)


@drill.command
def soak(
    *,
    minutes: float = 40.0,
    faults: int = 200,
    seed: int = 0,
    dir: Directory = None,
    uri: Text = None,
    keep: Flag = False,
    html: File = None,
    junit: File = None,
    json: Flag = False,
) -> ExitCode:
    """Put one job under many faults, and judge it; exit 1 if a promise was broken.

    Parameters
    ----------
    minutes, faults
        When it has been enough, whichever comes first.
    seed
        Decides on the faults and their order.
    dir, uri, keep, html, junit, json
        As for `keepstep drill run`. On s3://, of a server without TLS, requests go wrong as well.
    """
    check_reports(html, junit)
    from keepstep.drills.perform import Ground
    from keepstep.drills.soak.drill import soak as soak_drill

    with working_directory(dir) as directory:
        ground = Ground(directory, uri, seed=seed)
        drills = [soak_drill(minutes=minutes, faults=faults)]
        records = perform_all(ground, drills, keep=keep, is_quiet=json)
    return tell(records, json=json, html=html, junit=junit)


@drill.command(name="judge")
def judge_records(
    *files: Path, html: File = None, junit: File = None, json: Flag = False
) -> ExitCode:
    """Judge drills again by their records; exit 1 if one fails.

    Parameters
    ----------
    files
        Records, or the directories they are in.
    html, junit
        As for `keepstep drill run`.
    json
        Print JSON.
    """
    check_reports(html, junit)
    if not files:
        raise UsageError("name at least one record, or its directory")
    from keepstep.drills.perform import judged
    from keepstep.drills.record import read_record

    records = [judged(read_record(file)) for file in files]
    return tell(records, json=json, html=html, junit=junit)


@drill.command(name="replay")
def replay(
    file: Path,
    *,
    dir: Directory = None,
    uri: Text = None,
    keep: Flag = False,
    html: File = None,
    junit: File = None,
    json: Flag = False,
) -> ExitCode:
    """Perform the drill of a record again: the same acts, seed and settings.

    Parameters
    ----------
    file
        The record, or the directory it is in.
    dir, uri, keep, html, junit, json
        As for `keepstep drill run`.
    """
    check_reports(html, junit)
    from keepstep.drills.perform import Ground
    from keepstep.drills.record import read_record

    record = read_record(file)
    with working_directory(dir) as directory:
        ground = Ground(
            directory, uri, settings=record.settings, seed=record.seed, sabotage=record.sabotage
        )
        records = perform_all(ground, [record.drill], keep=keep, is_quiet=json)
    return tell(records, json=json, html=html, junit=junit)


def _list_sabotages(*, json: bool) -> None:
    if json:
        print_json({"sabotages": [{"name": n, "description": d} for n, d in SABOTAGES.items()]})
    else:
        print_table([("sabotage", "what is broken"), *SABOTAGES.items()])
