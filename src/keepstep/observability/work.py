"""What goes on between a start and its end: a line now and then on every rank.

The coordinator's ledger tells when each step ended, and steps end on all ranks together. What
differs between ranks is written here, some steps a line, so that it costs no step anything.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from keepstep.observability.ledger import Ledger
from keepstep.observability.waits import DATA_WAITS

WORK = "work"
"""The event that covers some steps: how long this rank waited for data in them."""
STALL = "stall"
"""The event of training held up by a save."""

_SHORTEST_SECONDS = 1.0
_LONGEST_SECONDS = 30.0
_SHARE = 1 / 30
_SHORTEST_STALL_SECONDS = 0.001


class WorkRecord:
    """Writes how this rank spends its time. *Ranks:* local; the thread of the training loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._began_run = self._began = time.time()
        self._first: int | None = None
        self._last = 0
        self._is_open = False

    def begin(self) -> None:
        """The first step begins."""
        self._began_run = self._began = time.time()
        self._is_open = True
        DATA_WAITS.take()

    def step_ended(self, step: int) -> None:
        """One more; a line is written once it covers a second, later up to half a minute."""
        self._first = step if self._first is None else self._first
        self._last = step
        now = time.time()
        wanted = (now - self._began_run) * _SHARE
        if now - self._began >= min(max(wanted, _SHORTEST_SECONDS), _LONGEST_SECONDS):
            self._write(now)

    def end(self) -> None:
        """There are no more steps; write what is not written."""
        if self._is_open and self._first is not None:
            self._write(time.time())
        self._is_open = False

    @contextmanager
    def stalled(self, step: int) -> Iterator[None]:
        """The block holds training up for a save."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            if self._is_open and seconds >= _SHORTEST_STALL_SECONDS:
                self._ledger.record(STALL, step=step, seconds=round(seconds, 4))

    def _write(self, now: float) -> None:
        self._ledger.record(
            WORK,
            first=self._first,
            last=self._last,
            began=round(self._began, 3),
            data_s=round(DATA_WAITS.take(), 4),
        )
        self._began, self._first = now, None
