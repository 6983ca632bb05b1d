"""Signals as notices, heard at once: also while the main thread is inside a collective.

Python runs a signal handler between two bytecodes of the main thread, which in the middle of a C++
collective means: when that is over. The number of the signal, however, is written to the wakeup
descriptor by the C handler itself, and a thread that reads from it hears it within milliseconds.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType

from keepstep.elastic.notices import Notices

logger = logging.getLogger("keepstep.elastic")

PREEMPTING = (signal.SIGTERM, signal.SIGUSR1)
"""What launchers, Kubernetes and ``scancel`` send; and what Slurm's ``--signal`` is told to."""

_ECHO_SECONDS = 1.0
"""Launchers may forward a signal that the process has had already."""


class SignalListener:
    """Turns signals into notices while it is open.

    The first one is a notice; the same or another one a second later means now.

    *Ranks:* local. Make it in the main thread.

    Args:
        at_once: Ends the process; called in the listener's thread.
    """

    def __init__(
        self,
        notices: Notices,
        *,
        grace_seconds: float,
        at_once: Callable[[str], None],
        signals: Iterable[signal.Signals] = PREEMPTING,
    ) -> None:
        self._notices = notices
        self._grace_seconds = grace_seconds
        self._at_once = at_once
        self._heard_at: float | None = None
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)  # the socket's own signature
        self._wakeup_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._handlers_before = {number: signal.signal(number, _do_nothing) for number in signals}
        self._thread = threading.Thread(target=self._listen, name="keepstep-signals", daemon=True)
        self._thread.start()
        _open.add(self)

    def close(self) -> None:
        """Leave signals to whoever had them before."""
        _open.discard(self)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._wakeup_before)
        self._theirs.close()
        self._thread.join(timeout=5)
        self._ours.close()

    def forget(self) -> None:
        """Listen no more in a process that was forked: its socket is the other one's as well."""
        for number, handler in self._handlers_before.items():
            if signal.getsignal(number) is _do_nothing:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._theirs.close()
        self._ours.close()

    def _listen(self) -> None:
        while numbers := self._ours.recv(64):
            for number in numbers:
                if number in self._handlers_before:
                    self._hear(signal.Signals(number).name)

    def _hear(self, name: str) -> None:
        now = time.monotonic()
        if self._heard_at is None:
            self._heard_at = now
            self._notices.post(name, grace_seconds=self._grace_seconds)
        elif now - self._heard_at > _ECHO_SECONDS:
            self._at_once(name)


_open: set[SignalListener] = set()


def _forget_all() -> None:
    """Else a pool that ends its forked workers would seem to have been told to go itself."""
    if _open:
        signal.set_wakeup_fd(-1)
    while _open:
        _open.pop().forget()


os.register_at_fork(after_in_child=_forget_all)


def can_listen(signals: Iterable[signal.Signals] = PREEMPTING) -> bool:
    """Whether this is the main thread, and nobody else handles these signals."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and all(signal.getsignal(number) == signal.SIG_DFL for number in signals)


def leave(code: int, why: str) -> None:
    """End this process now, whatever its threads are doing."""
    logger.warning("%s; this process (%d) ends with %d", why, os.getpid(), code)
    os._exit(code)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A handler in Python has to be there for the descriptor to be written to."""
