"""What a person sees while drills are performed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from keepstep.drills.record import Record
from keepstep.drills.report import line
from keepstep.drills.scenario import Drill

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_COLORS = {"PASS": "green", "FAIL": "red", "SKIP": "yellow"}


class Display(Protocol):
    """Told of each drill when it begins and when it is over."""

    def began(self, drill: Drill) -> None: ...

    def ended(self, record: Record) -> None: ...


class Silent:
    """Shows nothing."""

    def began(self, drill: Drill) -> None:
        pass

    def ended(self, record: Record) -> None:
        pass


class Lines(Silent):
    """A line for each drill that is over: for logs."""

    def ended(self, record: Record) -> None:
        print(line(record), flush=True)


class Bar:
    """The same lines, with a bar below them that says what is going on."""

    def __init__(self, progress: "Progress", task: "TaskID") -> None:
        self._progress = progress
        self._task = task

    def began(self, drill: Drill) -> None:
        self._progress.update(self._task, description=drill.name)

    def ended(self, record: Record) -> None:
        from rich.text import Text

        shown = Text(line(record))
        shown.stylize(f"bold {_COLORS[record.outcome]}", 0, len(record.outcome))
        self._progress.console.print(shown, soft_wrap=True)
        self._progress.advance(self._task)


@contextmanager
def display(total: int, *, is_quiet: bool = False) -> Iterator[Display]:
    """The display that suits whoever is looking, for so many drills."""
    if is_quiet:
        yield Silent()
    elif not sys.stdout.isatty():
        yield Lines()
    else:
        with _bar(total) as (progress, task):
            yield Bar(progress, task)


@contextmanager
def _bar(total: int) -> "Iterator[tuple[Progress, TaskID]]":
    # rich comes with cyclopts; imported only where a person looks.
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, transient=True) as progress:
        yield progress, progress.add_task("", total=total)
