"""A deadline that needs nothing of Python to strike: not the interpreter lock, not a thread.

At the deadline ``faulthandler`` writes the stacks of all threads from a thread of C, and a moment
later a POSIX timer has the C library call ``_exit``.
"""

import ctypes
import faulthandler
import sys
import time
from typing import TextIO

_SLACK_SECONDS = 1.0
"""Stacks are written at most this much late; so they need not be rearmed more often."""

_DUMP_SECONDS = 0.5
"""What writing them takes at most."""

LATEST_SECONDS = _SLACK_SECONDS + _DUMP_SECONDS
"""How long after the deadline the process is gone."""

_STDERR = 2

_CLOCK_MONOTONIC = 1
_SIGEV_THREAD = 2


class Deadline:
    """Ends this process with its exit code, unless set anew or cleared in time.

    Without POSIX timers (macOS) the exit code is 1, and the process ends with the dump.

    *Ranks:* local; one thread sets and clears.

    Args:
        file: Where the stacks of all threads are written; it must have a descriptor.
    """

    def __init__(self, exit_code: int, file: TextIO | None = None) -> None:
        self._file: TextIO | int = _STDERR if file is None else file
        self._timer = _Timer(exit_code) if sys.platform == "linux" else None
        self._dump_at = 0.0

    def set(self, seconds: float) -> None:
        """Strike that many seconds from now: at most ``LATEST_SECONDS`` later."""
        due = time.monotonic() + seconds
        if not due <= self._dump_at <= due + _SLACK_SECONDS:
            self._dump_at = due + _SLACK_SECONDS
            # An own thread of C for each call: too dear to be made every step.
            faulthandler.dump_traceback_later(
                seconds + _SLACK_SECONDS, exit=self._timer is None, file=self._file
            )
        if self._timer is not None:
            self._timer.set(seconds + LATEST_SECONDS)

    def clear(self) -> None:
        """Expect nothing any more."""
        self._dump_at = 0.0
        faulthandler.cancel_dump_traceback_later()
        if self._timer is not None:
            self._timer.set(0.0)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_char * 32),
    )


class _Timer:
    """A POSIX timer whose thread calls ``_exit(code)``: Python has no part in it."""

    def __init__(self, exit_code: int) -> None:
        library = _library()
        event = _SigEvent(
            value=exit_code,
            notify=_SIGEV_THREAD,
            function=ctypes.cast(library["_exit"], ctypes.c_void_p).value,
        )
        self._id = ctypes.c_void_p()
        failed = library.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._id))
        if failed:
            raise OSError(ctypes.get_errno(), "timer_create")
        self._spec = _TimerSpec()
        self._address = ctypes.addressof(self._spec)
        self._settime = library.timer_settime
        self._settime.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

    def set(self, seconds: float) -> None:
        """0 stops it."""
        whole = int(seconds)
        self._spec.value.seconds = whole
        self._spec.value.nanoseconds = int((seconds - whole) * 1e9)
        self._settime(self._id, 0, self._address, None)


def _library() -> ctypes.CDLL:
    """Timers are in the C library, or before glibc 2.34 in one of their own."""
    library = ctypes.CDLL(None, use_errno=True)
    return (
        library if hasattr(library, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)
    )
