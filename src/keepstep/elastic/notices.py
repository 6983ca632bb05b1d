"""Notices: this process has been told to go, and by when."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notice:
    """Word that this process will be stopped."""

    source: str
    """Where it came from: ``SIGTERM``, ``aws spot instance-action``."""
    deadline: float
    """On the monotonic clock: after that, whoever sent it uses force."""

    @property
    def remaining_seconds(self) -> float:
        """Negative once the time is over."""
        return self.deadline - time.monotonic()


class Notices:
    """What has been heard so far. Any thread may post; any may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notice: Notice | None = None
        self._listeners: list[Callable[[Notice], None]] = []

    @property
    def first(self) -> Notice | None:
        """The first notice, with the earliest deadline of all that came after it."""
        return self._notice

    def post(self, source: str, *, grace_seconds: float) -> None:
        """Note that this process has so long to live. Later notices can only shorten that."""
        with self._lock:
            deadline = time.monotonic() + grace_seconds
            is_first = self._notice is None
            if self._notice is not None:
                source, deadline = self._notice.source, min(deadline, self._notice.deadline)
            self._notice = notice = Notice(source, deadline)
            listeners = list(self._listeners) if is_first else []
        for listener in listeners:
            listener(notice)

    def listen(self, listener: Callable[[Notice], None]) -> None:
        """Have the first notice told to ``listener``: in whichever thread posts it, or now."""
        with self._lock:
            self._listeners.append(listener)
            notice = self._notice
        if notice is not None:
            listener(notice)

    def ignore(self, listener: Callable[[Notice], None]) -> None:
        """Tell ``listener`` nothing any more."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
