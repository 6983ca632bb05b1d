"""Heartbeats: what a worker is doing, in a few bytes of shared memory that its agent can read.

A worker writes with a handful of stores into a mapped file, and never waits; an agent reads at its
leisure, also when the worker is stopped or holds its interpreter for ever.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = 0x4B45_4550_5354_0001
_NUMBERS = 10
_NAME_BYTES = 32
_NUMBERS_BYTES = 8 * _NUMBERS
_SIZE = _NUMBERS_BYTES + _NAME_BYTES

# Places in the file, in units of eight bytes; the section's name follows.
_SEQUENCE = 1  # odd while the next five and the name are being written
_STEP = 2
_SINCE = 3
_DEADLINE = 4
_COMMITS = 5
_COMMITTED_STEP = 6
_TOLD = 7
_PID = 8
_STARTING = 9

_READS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a worker said last. Times are on the machine's monotonic clock, in nanoseconds."""

    pid: int
    section: str
    step: int
    since_ns: int
    """When the section, or this step of it, began."""
    deadline_ns: int
    """When it must be over; 0 if nothing is expected."""
    commits: int
    """New checkpoints that this process has seen committed."""
    committed_step: int
    """Of the newest, or of the one it resumed from; -1 if there is none."""
    told_ns: int
    """When the process was told that it will be stopped; 0 if it was not."""
    is_starting: bool
    """Whether it has begun to load, and has made no step since."""


class Heartbeat:
    """One worker's file, made by the worker. Setting an attribute costs nothing worth counting.

    *Ranks:* local; one thread sets, except :meth:`tell`.
    """

    def __init__(self, path: Path) -> None:
        self._map = _create(path)
        self._numbers = memoryview(self._map)[:_NUMBERS_BYTES].cast("q")
        self._numbers[_COMMITTED_STEP] = -1
        self._numbers[_PID] = os.getpid()
        self._name = ""

    def beat(self, section: str, *, step: int, since_ns: int, deadline_ns: int) -> None:
        """This process does that since then, and must be through with it by then."""
        numbers = self._numbers
        numbers[_SEQUENCE] += 1
        numbers[_STEP] = step
        numbers[_SINCE] = since_ns
        numbers[_DEADLINE] = deadline_ns
        if section is not self._name:
            self._map[_NUMBERS_BYTES:] = section.encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
            self._name = section
        numbers[_SEQUENCE] += 1

    def commit(self, commits: int, step: int) -> None:
        """So many checkpoints were committed, the newest at that step."""
        numbers = self._numbers
        numbers[_SEQUENCE] += 1
        numbers[_COMMITS] = commits
        numbers[_COMMITTED_STEP] = step
        numbers[_SEQUENCE] += 1

    def start(self, *, is_over: bool) -> None:
        """A load begins; or, if the start is over, the first step after it has been made."""
        self._numbers[_STARTING] = not is_over

    def tell(self, told_ns: int) -> None:
        """This process will be stopped. From any thread."""
        self._numbers[_TOLD] = told_ns


def read_beat(path: Path) -> Beat | None:
    """What the worker said last; ``None`` if there is no file yet, or no rest to read it."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), _SIZE, prot=mmap.PROT_READ) as map_:
            for _ in range(_READS):
                if beat := _consistent(map_):
                    return beat
    except (OSError, ValueError):  # whatever it is: the agent's eye must not close
        pass
    return None


def _create(path: Path) -> mmap.mmap:
    """Of full size before it has its name: a reader finds it whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with draft.open("w+b") as file:
        file.write(struct.pack("q", _MAGIC).ljust(_SIZE, b"\0"))
        file.flush()
        map_ = mmap.mmap(file.fileno(), _SIZE)
    draft.rename(path)
    return map_


def _consistent(map_: mmap.mmap) -> Beat | None:
    """Nothing if the writer was at it."""
    before = struct.unpack_from("q", map_, 8 * _SEQUENCE)[0]
    data = map_[:]
    numbers = struct.unpack_from(f"{_NUMBERS}q", data)
    after = struct.unpack_from("q", map_, 8 * _SEQUENCE)[0]
    if numbers[0] != _MAGIC or before % 2 or before != after:
        return None
    return Beat(
        pid=numbers[_PID],
        section=data[_NUMBERS_BYTES:].rstrip(b"\0").decode(errors="replace"),
        step=numbers[_STEP],
        since_ns=numbers[_SINCE],
        deadline_ns=numbers[_DEADLINE],
        commits=numbers[_COMMITS],
        committed_step=numbers[_COMMITTED_STEP],
        told_ns=numbers[_TOLD],
        is_starting=bool(numbers[_STARTING]),
    )
