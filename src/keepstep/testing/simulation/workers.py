"""Threads that are used again: one that runs is handed over, all others wait."""

import threading
from collections.abc import Callable


class Worker:
    """A thread that carries out what it is given, one thing after the other."""

    def __init__(self) -> None:
        self.baton = threading.Lock()
        self.baton.acquire()
        self.act: Callable[[], None] | None = None
        threading.Thread(target=self._work, name="simulated", daemon=True).start()

    @classmethod
    def given(cls, act: Callable[[], None]) -> "Worker":
        """One that will do this, once its baton is released."""
        worker = _idle.pop() if _idle else cls()
        worker.act = act
        return worker

    def rest(self) -> None:
        """Be free for something else. The last thing before the baton goes to another."""
        _idle.append(self)

    def _work(self) -> None:
        while True:
            self.baton.acquire()
            assert self.act is not None
            self.act()


_idle: list[Worker] = []
