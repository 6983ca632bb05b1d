"""Processes and their threads, of which one runs at a time, and who is next."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from random import Random
from threading import Lock

from keepstep.testing.simulation.clock import Clock
from keepstep.testing.simulation.workers import Worker


class Killed(BaseException):
    """What a killed process would have done next does not happen."""


@dataclass(eq=False)
class Process:
    """What dies, or is stopped, as a whole."""

    name: str
    role: str
    job: object = None
    """What it is a part of."""
    is_dead: bool = False
    is_stopped: bool = False
    wakes_at: float = 0
    """The operation at which a stopped one goes on by itself."""


@dataclass(eq=False)
class Actor:
    """A thread of a process."""

    process: Process
    act: Callable[[], None]
    activity: str = ""
    waits_for: Hashable = None
    deadline: float | None = None
    has_timed_out: bool = False
    is_over: bool = False
    worker: Worker | None = None


@dataclass
class Sleeper:
    """A thread that does nothing but wake up now and then: it is begun when time passes."""

    actor: Actor


@dataclass
class Scheduler:
    """Hands the baton on. Which actor runs follows from ``random`` alone.

    Args:
        fail: Told what an actor raised, beside :class:`Killed`.
    """

    clock: Clock
    random: Random
    fail: Callable[[Actor, BaseException], None]
    current: Actor | None = None
    ready: list[Actor] = field(default_factory=list)
    waiting: list[Actor] = field(default_factory=list)
    sleepers: list[Sleeper] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._main = Lock()
        self._main.acquire()

    def spawn(self, process: Process, act: Callable[[], None], activity: str = "") -> Actor:
        """A new thread of a process, ready to run."""
        actor = Actor(process, act, activity)
        self.ready.append(actor)
        return actor

    def run(self) -> None:
        """Let the actors act until none can. *Ranks:* called from outside."""
        following = self._next()
        if following is not None:
            self._pass_to(following)
            self._main.acquire()

    def switch(self) -> None:
        """Let somebody else go on, or the same one."""
        actor = self.current
        assert actor is not None
        self._await_turn(actor)
        if actor.process.is_dead:
            raise Killed

    def wait(self, key: Hashable, seconds: float | None) -> bool:
        """Wait until the key is notified; ``False`` if the time was over first."""
        actor = self.current
        assert actor is not None
        if actor.process.is_dead:
            raise Killed
        actor.waits_for = key
        actor.deadline = None if seconds is None else self.clock.seconds + seconds
        actor.has_timed_out = False
        self.ready.remove(actor)
        self.waiting.append(actor)
        self._await_turn(actor)
        if actor.process.is_dead:
            raise Killed
        return not actor.has_timed_out

    def notify(self, key: Hashable) -> None:
        """Have those who wait for the key go on."""
        for actor in [actor for actor in self.waiting if actor.waits_for == key]:
            self._rouse(actor)

    def kill(self, process: Process) -> None:
        """Its threads end at what they would have done next."""
        process.is_dead, process.is_stopped = True, False
        self.sleepers = [s for s in self.sleepers if s.actor.process is not process]
        for actor in [actor for actor in self.waiting if actor.process is process]:
            self._rouse(actor)

    def _rouse(self, actor: Actor) -> None:
        self.waiting.remove(actor)
        self.ready.append(actor)

    def _await_turn(self, actor: Actor) -> None:
        following = self._next()
        if following is actor:
            return
        assert actor.worker is not None
        if following is None:
            self._main.release()
        else:
            self._pass_to(following)
        actor.worker.baton.acquire()
        self.current = actor

    def _pass_to(self, actor: Actor) -> None:
        self.current = actor
        if actor.worker is None:
            actor.worker = Worker.given(lambda: self._carry_out(actor))
        actor.worker.baton.release()

    def _carry_out(self, actor: Actor) -> None:
        try:
            if not actor.process.is_dead:
                actor.act()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  # whatever it is, the history is judged by it
            self.fail(actor, error)
        actor.is_over = True
        self.ready.remove(actor)
        self.notify(actor)
        following = self._next()
        assert actor.worker is not None
        actor.worker.rest()
        if following is None:
            self._main.release()
        else:
            self._pass_to(following)

    def _next(self) -> Actor | None:
        while True:
            able = [actor for actor in self.ready if not actor.process.is_stopped]
            if able:
                return able[0] if len(able) == 1 else able[int(self.random.random() * len(able))]
            if not self._let_time_pass():
                return None

    def _let_time_pass(self) -> bool:
        """Until the next deadline; ``False`` if there is none."""
        timed = [a for a in self.waiting if a.deadline is not None and not a.process.is_stopped]
        if not timed:
            return False
        if self.sleepers:
            self.ready += [sleeper.actor for sleeper in self.sleepers]
            self.sleepers = []
            return True
        actor = min(timed, key=_deadline)
        self.clock.seconds = max(self.clock.seconds, _deadline(actor))
        actor.has_timed_out = True
        self._rouse(actor)
        return True


def _deadline(actor: Actor) -> float:
    assert actor.deadline is not None
    return actor.deadline
