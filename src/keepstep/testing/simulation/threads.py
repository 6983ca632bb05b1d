"""What the protocol's code takes for the module ``threading``."""

from collections.abc import Callable
from typing import Any

from keepstep.testing.simulation.actors import Actor, Scheduler, Sleeper


class Threads:
    """Locks, events and threads of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def Lock(self) -> "_Lock":  # noqa: N802  # threading's name
        return _Lock(self._scheduler)

    def Event(self) -> "_Event":  # noqa: N802  # threading's name
        return _Event(self._scheduler)

    def Thread(self, *, target: Callable[[], None], **_: Any) -> "_Thread":  # noqa: N802  # its name
        return _Thread(self._scheduler, target)


class _Lock:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_held = False

    def __enter__(self) -> None:
        while self._is_held:
            self._scheduler.wait(self, None)
        self._is_held = True

    def __exit__(self, *_: object) -> None:
        self._is_held = False
        self._scheduler.notify(self)


class _Event:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        self._scheduler.notify(self)

    def wait(self, seconds: float) -> bool:
        return self._is_set or self._scheduler.wait(self, seconds)


class _Thread:
    """Begun only once time passes: until then it would sleep."""

    ident = 0

    def __init__(self, scheduler: Scheduler, target: Callable[[], None]) -> None:
        current = scheduler.current
        assert current is not None
        self._scheduler = scheduler
        self._sleeper = Sleeper(Actor(current.process, target, current.activity))

    def start(self) -> None:
        self._scheduler.sleepers.append(self._sleeper)

    def join(self) -> None:
        if self._sleeper in self._scheduler.sleepers:
            self._scheduler.sleepers.remove(self._sleeper)
        elif not self._sleeper.actor.is_over:
            self._scheduler.wait(self._sleeper.actor, None)
