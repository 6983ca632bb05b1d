"""What the verbs of ``keepstep drill`` share: which drills, where, what is printed."""

import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from keepstep.cli.output import check_file, print_json, print_table
from keepstep.drills.catalog import select
from keepstep.drills.scenario import SETTINGS, Drill
from keepstep.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from keepstep.drills.perform import Ground
    from keepstep.drills.record import Record


def choose(
    names: tuple[str, ...], recipe: Path | None, steps: int | None
) -> tuple[tuple[Drill, ...], list["Record"], Mapping[str, object]]:
    """What to perform, what to skip because it does not fit, and the settings of all jobs.

    *Raises:* ``ConfigError`` if a drill that was asked for by its name does not fit.
    """
    if recipe is None:
        return select(names), [], SETTINGS
    from keepstep.drills.recipe import read_recipe
    from keepstep.drills.record import Record

    trial = read_recipe(recipe, steps=steps)
    drills = select(names, trial.scale)
    reasons = {drill.name: trial.objection(drill) for drill in drills}
    for drill in drills:
        if drill.name in names and (reason := reasons[drill.name]):
            raise ConfigError(f"{drill.name} makes no sense with {recipe}: {reason}")
    fitting = tuple(drill for drill in drills if reasons[drill.name] is None)
    unfit = [Record(drill=d, skipped=reason) for d in drills if (reason := reasons[d.name])]
    return fitting, unfit, trial.settings


def perform_all(
    ground: "Ground", drills: Sequence[Drill], *, keep: bool, is_quiet: bool
) -> list["Record"]:
    """Perform drills in turn; what nobody needs any more is removed."""
    from keepstep.drills.progress import display

    records = []
    with _interruptible(), display(len(drills), is_quiet=is_quiet) as shown:
        for each in drills:
            shown.began(each)
            record = ground.perform(each)
            records.append(record)
            shown.ended(record)
            if record.is_good and not keep:
                ground.discard(record)
    if all(record.is_good for record in records) and not keep:
        ground.discard_references()
    return records


def check_reports(html: Path | None, junit: Path | None) -> None:
    """*Raises:* ``UsageError`` if a report could not be written."""
    check_file("--html", html)
    check_file("--junit", junit)


def tell(
    records: Sequence["Record"],
    *,
    json: bool,
    html: Path | None = None,
    junit: Path | None = None,
) -> ExitCode:
    """Print every verdict, and write the reports asked for; how the command ends."""
    from keepstep.drills import report
    from keepstep.drills.soak.figures import figures

    if html is not None:
        report.write_html(records, html)
    if junit is not None:
        report.write_junit(records, junit)
    soaks = [found for r in records if r.drill.is_open_ended and (found := figures(r))]
    if json:
        costs = {"soaks": [found.document() for found in soaks]} if soaks else {}
        print_json(report.document(records) | costs)
    else:
        print()
        print_table(report.rows(records))
        for found in soaks:
            print("\n" + "\n".join(found.lines()))
        print(f"\n{report.summary(records)}")
    are_good = all(record.is_good for record in records)
    return ExitCode.OK if are_good else ExitCode.ERROR


@contextmanager
def working_directory(dir: Path | None) -> Iterator[Path]:
    """The one that was asked for; or a temporary one, which goes if nothing is kept in it."""
    directory = dir or Path(tempfile.mkdtemp(prefix="keepstep-drill-"))
    try:
        yield directory
    finally:
        if dir is None and not any(directory.iterdir()):
            directory.rmdir()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Take what a scheduler or a lost terminal sends as an interruption: no job outlives this."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
