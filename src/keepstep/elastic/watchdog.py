"""The watchdog: every section of the work has a deadline, learned from how long it took before.

A section that goes on for longer ends the process with exit code 88 and the stacks of all threads,
whatever the process is doing: it may loop, wait for a peer that is gone, or hold the interpreter.
Where ``keepstep run`` has started the process, its agent sees the same deadlines, and also ends
processes that cannot end themselves.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from keepstep.elastic.deadline import Deadline
from keepstep.elastic.heartbeat import Heartbeat
from keepstep.errors import ExitCode
from keepstep.observability.section_clock import SectionClock

INIT = "init"
LOAD = "load"
FIRST_STEP = "first step"
STEP = "step"
SAVE = "save"
EXIT = "exit"

STACKS_SUFFIX = ".stacks"
"""Beside a heartbeat: what the process was doing when its deadline had passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogPolicy:
    """How long is too long."""

    floor_seconds: float = 60.0
    """No deadline is shorter."""
    factor: float = 5.0
    """How many times as long as ever before a section may take."""
    unlearned_seconds: float = 1800.0
    """What a section may take that has never been seen to end."""


_POLICY = WatchdogPolicy()


class Watchdog:
    """Knows what this process is doing, and for how long it may.

    Sections nest: while an inner one goes on, the outer one's clock stands still.

    *Ranks:* local; one thread calls, except :meth:`told`.

    Args:
        heartbeat: A file in which the agent finds it all.
        is_armed: Otherwise it only measures and reports, and leaves the process alone.
    """

    def __init__(
        self,
        policy: WatchdogPolicy = _POLICY,
        heartbeat: Path | None = None,
        *,
        is_armed: bool = True,
        on_commit: Callable[[], None] | None = None,
    ) -> None:
        self.policy = policy
        self.is_armed = is_armed
        self.longest: dict[str, float] = {}
        """Seconds that each section took at most, so far."""
        self.clock = SectionClock()
        """Where the time goes."""
        self._on_commit = on_commit
        self._beats = Heartbeat(heartbeat) if heartbeat else None
        self._heartbeat = heartbeat
        self._deadline: Deadline | None = None
        self._open: list[_Section] = []
        self._step = 0
        self._commits = 0

    def learn(self, longest: Mapping[str, float]) -> None:
        """What sections have taken: the longest of each counts."""
        for name, seconds in longest.items():
            self.longest[name] = max(seconds, self.longest.get(name, 0.0))

    def begin(self, section: str, *, step: int | None = None) -> None:
        """From here on, until something else begins. It is not learned from."""
        if step is not None:
            self._step = step
        self._open = [_Section(section)]
        self._enter()

    def rest(self) -> None:
        """From here on nothing is expected."""
        self._open = []
        self._enter()

    def tick(self, step: int) -> None:
        """A step has ended. All but the first are learned from: that one warms things up."""
        if self._open and self._open[0].name == STEP:
            self._learn(self._open[0])
        elif self._beats is not None:
            self._beats.start(is_over=True)
        self.begin(STEP, step=step)

    @contextmanager
    def section(
        self, name: str, *, at_least_seconds: float = 0.0, is_typical: bool = True
    ) -> Iterator[None]:
        """What goes on in the block; it is learned from if it ends well.

        Args:
            at_least_seconds: A floor of its own, for what has deadlines of its own.
            is_typical: Otherwise it is not learned from.
        """
        section = _Section(name, at_least_seconds)
        if name == LOAD and self._beats is not None:
            self._beats.start(is_over=False)
        self._pause()
        self._open.append(section)
        self._enter()
        try:
            yield
            if is_typical:
                self._learn(section)
        finally:
            if section in self._open:
                self._open.remove(section)
            self._enter()

    def again(self) -> None:
        """The innermost section has come one turn further: its deadline counts from here."""
        self._enter()

    def committed(self, step: int, *, is_new: bool) -> None:
        """The newest checkpoint is that of ``step``. *Ranks:* whichever learn of it."""
        self._commits += is_new
        if self._beats is not None:
            self._beats.commit(self._commits, step)
        if is_new and self._on_commit is not None:
            self._on_commit()

    def told(self) -> None:
        """This process will be stopped."""
        if self._beats is not None:
            self._beats.tell(time.monotonic_ns())

    def allowed_seconds(self, section: str, *, at_least_seconds: float = 0.0) -> float:
        """How long a section may take."""
        policy = self.policy
        longest = self.longest.get(section)
        learned = policy.unlearned_seconds if longest is None else longest * policy.factor
        return max(policy.floor_seconds, learned, at_least_seconds)

    def _pause(self) -> None:
        if self._open:
            outer = self._open[-1]
            outer.spent_ns += time.monotonic_ns() - outer.since_ns

    def _enter(self) -> None:
        """Let the innermost section's clock run, from now."""
        now = time.monotonic_ns()
        self.clock.enter(self._open[-1].name if self._open else "", now)
        if not self._open:
            if self._deadline is not None:
                self._deadline.clear()
            if self._beats is not None:
                self._beats.beat("", step=self._step, since_ns=now, deadline_ns=0)
            return
        section = self._open[-1]
        section.since_ns = now
        deadline_ns = 0
        if self.is_armed:
            seconds = self.allowed_seconds(section.name, at_least_seconds=section.at_least_seconds)
            deadline_ns = now + int(seconds * 1e9)
            self._set(seconds)
        if self._beats is not None:
            self._beats.beat(section.name, step=self._step, since_ns=now, deadline_ns=deadline_ns)

    def _set(self, seconds: float) -> None:
        if self._deadline is None:
            stacks = _stacks(self._heartbeat) if self._heartbeat else None
            self._deadline = Deadline(ExitCode.HUNG, stacks)
        self._deadline.set(seconds)

    def _learn(self, section: "_Section") -> None:
        seconds = (section.spent_ns + time.monotonic_ns() - section.since_ns) / 1e9
        self.learn({section.name: seconds})


@dataclass(slots=True, eq=False)
class _Section:
    name: str
    at_least_seconds: float = 0.0
    since_ns: int = 0
    spent_ns: int = 0
    """Before an inner section began."""


_installed: Watchdog | None = None


def install(watchdog: Watchdog) -> None:
    """Make it the one of this process. Whoever starts the process does, as it knows the agent."""
    global _installed  # noqa: PLW0603  # one process, one watchdog
    _installed = watchdog


def is_installed() -> bool:
    """Whether somebody has."""
    return _installed is not None


def installed() -> Watchdog:
    """The watchdog of this process; if nobody has installed one, it watches over nothing."""
    return _installed or Watchdog(is_armed=False)


def _stacks(heartbeat: Path) -> TextIO:
    return heartbeat.with_name(heartbeat.name + STACKS_SUFFIX).open("w")
