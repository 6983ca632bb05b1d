"""The power is cut at every point of a story, and each time the disk is judged."""

import logging
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keepstep.testing.block_device import CuttableDisk
from keepstep.testing.power.cut import Habit, Point, PowerCut, PowerLost, Weather
from keepstep.testing.power.diary import Diary
from keepstep.testing.power.habits import make_every_call
from keepstep.testing.power.judge import broken_promises
from keepstep.testing.power.story import Story


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one cut."""

    system: str
    weather: Weather
    point: Point
    chapter: str
    call: str
    """The one that was not made, or only half."""
    broken: tuple[str, ...]
    """Promises, as sentences. Empty: recovered."""

    def __str__(self) -> str:
        moment = "in the middle of" if self.point.in_the_middle else "before"
        where = f"{self.system}, {self.weather}, {moment} call {self.point.number} ({self.call})"
        return f"{where}, chapter {self.chapter}: " + ("; ".join(self.broken) or "recovered")


def points(disk: CuttableDisk, *, seed: int = 0) -> list[Point]:
    """Every point of a story: before each call, in the middle of each write, after the last."""
    cut = PowerCut(disk, None)
    _tell(disk.path / "run-points", cut, Diary(), seed)
    shutil.rmtree(disk.path / "run-points")
    found = []
    for number, call in enumerate(cut.calls):
        found.append(Point(number))
        if call.make_half is not None:
            found.append(Point(number, in_the_middle=True))
    return [*found, Point(len(cut.calls))]


def sweep(
    disk: CuttableDisk,
    at: Iterable[Point],
    weather: Weather,
    *,
    seed: int = 0,
    new_habit: Callable[[], Habit] = make_every_call,
) -> Iterator[Outcome]:
    """Cut at each of these points. The disk is used again; every story has a directory of its own.

    Args:
        new_habit: Makes the habit of one story: a broken one proves the judge.
    """
    for point in at:
        cut = PowerCut(disk, point, weather, seed=seed + point.number, habit=new_habit())
        yield _outcome(disk, cut, point, weather, seed)


def find_out(
    disk: CuttableDisk, at: Iterable[Point], new_habit: Callable[[], Habit]
) -> tuple[int, Outcome | None]:
    """Cut until a broken habit shows, if it does: how many cuts it took, and the one that did."""
    cuts = 0
    for point in at:
        for weather in (Weather.CALM, Weather.JOURNAL):
            for outcome in sweep(disk, [point], weather, new_habit=new_habit):
                cuts += 1
                if outcome.broken:
                    return cuts, outcome
    return cuts, None


def _outcome(
    disk: CuttableDisk, cut: PowerCut, point: Point, weather: Weather, seed: int
) -> Outcome:
    root = disk.path / f"run-{secrets.token_hex(4)}"
    diary = Diary(cut.at_once)
    _tell(root, cut, diary, seed)
    disk.remount()
    diary.at_once = Diary.at_once
    broken = broken_promises(root, diary)
    shutil.rmtree(root)
    disk.sync()  # else the next cut brings it back
    return Outcome(
        disk.system.name, weather, point, diary.chapter, cut.missed or "none", tuple(broken)
    )


def _tell(root: Path, cut: PowerCut, diary: Diary, seed: int) -> None:
    story = Story(root, diary, check=cut.check, seed=seed)
    with _nothing_logged(), cut.watching():
        try:
            story.tell()
        except PowerLost:
            return
        if cut.has_point:
            cut.end()


@contextmanager
def _nothing_logged() -> Iterator[None]:
    """A process without power says nothing; its remains here would complain."""
    logger = logging.getLogger("keepstep")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
