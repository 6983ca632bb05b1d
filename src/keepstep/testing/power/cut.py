"""A power cut at one system call, in fair weather or foul."""

import ctypes
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from keepstep.testing.block_device import LIBC, CuttableDisk, opened
from keepstep.testing.power.calls import Call, calls_seen

_STRANGER = "stranger"
_SYNC_FILE_RANGE_ALL = 7
_GUST = 0.3


class PowerLost(BaseException):
    """The process is gone: no handler of errors may take this for one."""


class Weather(StrEnum):
    """What else reaches the disk, beside what the run has synced."""

    CALM = "calm"
    """Nothing."""
    JOURNAL = "journal"
    """Right before the cut somebody else's fsync commits the journal: every name, no data."""
    WRITTEN = "written"
    """Right before the cut everything is written back: what a killed process leaves."""
    GUSTS = "gusts"
    """Between calls, at random: somebody else's fsync, or the data of some file written back."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where the power is cut."""

    number: int
    """Before the call of this number; after the last one if there are fewer."""
    in_the_middle: bool = False
    """Instead, when half of what that call writes is written."""


Habit = Callable[[Call], Any]
"""How a program makes its calls; a broken one leaves some out."""


class PowerCut:
    """Cuts a disk's power at a point. :attr:`is_off` from then on.

    Calls are made one at a time. Once the power is off, each raises :class:`PowerLost`.
    """

    def __init__(
        self,
        disk: CuttableDisk,
        point: Point | None,
        weather: Weather = Weather.CALM,
        *,
        seed: int = 0,
        habit: Habit | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self.is_off = False
        self.missed: str | None = None
        """The call that the cut has prevented."""
        self._disk = disk
        self._point = point
        self._weather = weather
        self._random = random.Random(seed)
        self._habit = habit or (lambda call: call.make())
        self._lock = threading.RLock()
        self._root = disk.path

    @property
    def has_point(self) -> bool:
        """Whether there is to be a cut at all."""
        return self._point is not None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, calls count."""
        with calls_seen(self._root, self._see):
            yield

    def check(self) -> None:
        """*Raises:* ``PowerLost`` once the power is off."""
        if self.is_off:
            raise PowerLost

    def at_once(self, action: Callable[[], None]) -> None:
        """Do something while the power is on. *Raises:* as :meth:`check`."""
        with self._lock:
            self.check()
            action()

    def end(self) -> None:
        """Cut the power now, if it is still on."""
        with self._lock:
            if not self.is_off:
                self._off()

    def _see(self, call: Call) -> Any:
        with self._lock:
            self.check()
            if self._weather is Weather.GUSTS and self._random.random() < _GUST:
                self._gust()
            if self._point is not None and self._point.number == len(self.calls):
                if self._point.in_the_middle and call.make_half is not None:
                    call.make_half()
                self.missed = str(call)
                self._off()
                raise PowerLost
            self.calls.append(call)
            return self._habit(call)

    def _off(self) -> None:
        if self._weather is Weather.JOURNAL:
            self._sync_stranger()
        elif self._weather is Weather.WRITTEN:
            self._disk.sync()
        self.is_off = True
        self._disk.cut()

    def _gust(self) -> None:
        files = [path for path in sorted(self._root.glob("run-*/**/*")) if path.is_file()]
        if not files or self._random.random() < 0.5:
            self._sync_stranger()
            return
        with opened(self._random.choice(files)) as descriptor:
            whole = ctypes.c_int64(0), ctypes.c_int64(0)
            LIBC.sync_file_range(descriptor, *whole, _SYNC_FILE_RANGE_ALL)

    def _sync_stranger(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with opened(self._root / _STRANGER, flags) as descriptor:
            LIBC.write(descriptor, b"x", ctypes.c_size_t(1))
            LIBC.fsync(descriptor)
