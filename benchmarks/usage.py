"""What a piece of work costs this process and its children, as Linux counts it."""

import contextlib
import ctypes
import gc
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

_PAGE_BYTES = resource.getpagesize()
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters of this process and its live descendants; subtract two of them."""

    cpu_seconds: float
    read_bytes: int
    """Asked of ``read`` and its kin, from the page cache or not. Mapped pages are not counted."""
    written_bytes: int
    faulted_bytes: int
    """Memory touched for the first time (minor page faults), of this process."""
    resident_bytes: int

    @classmethod
    def now(cls) -> Self:
        pids = [os.getpid(), *_descendants()]
        read, written = map(sum, zip(*(_transferred(pid) for pid in pids), strict=True))
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(
            cpu_seconds=sum(_cpu_seconds(pid) for pid in pids) + reaped.ru_utime + reaped.ru_stime,
            read_bytes=read,
            written_bytes=written,
            faulted_bytes=faulted_bytes(),
            resident_bytes=sum(_status_bytes(pid, "VmRSS") for pid in pids),
        )


class Meter:
    """What happens between entering and leaving the block.

    Counting the children takes a millisecond or more, so clocks belong inside of it.
    """

    cpu_seconds: float
    read_bytes: int
    written_bytes: int
    faulted_bytes: int
    extra_bytes: int
    """How far the resident memory rose above where it was. Mapped file pages count."""
    device_extra_bytes: int | None = None
    """How far allocated CUDA memory rose; ``None`` where CUDA is not used."""

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # not allowed in some containers: the peak is then old
            Path("/proc/self/clear_refs").write_text("5")
        self._device_bytes = 0
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
            self._device_bytes = torch.cuda.memory_allocated()
        self._before = Usage.now()
        return self

    def __exit__(self, *error: object) -> None:
        after, before = Usage.now(), self._before
        self.cpu_seconds = after.cpu_seconds - before.cpu_seconds
        self.read_bytes = after.read_bytes - before.read_bytes
        self.written_bytes = after.written_bytes - before.written_bytes
        self.faulted_bytes = after.faulted_bytes - before.faulted_bytes
        peak = _peak_bytes() + sum(_status_bytes(pid, "VmRSS") for pid in _descendants())
        self.extra_bytes = max(0, peak - before.resident_bytes)
        if torch.cuda.is_initialized():
            self.device_extra_bytes = torch.cuda.max_memory_allocated() - self._device_bytes


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds on to: must not grow from save to save."""

    resident_bytes: int
    file_descriptors: int
    threads: int
    shared_memory_bytes: int
    """Of the machine: whatever lies in /dev/shm."""

    @classmethod
    def now(cls) -> Self:
        release_free_memory()
        shared = os.statvfs("/dev/shm")  # noqa: S108  # looked at only
        return cls(
            resident_bytes=_status_bytes(os.getpid(), "VmRSS"),
            file_descriptors=_count_in("/proc/self/fd"),
            threads=_count_in("/proc/self/task"),
            shared_memory_bytes=(shared.f_blocks - shared.f_bfree) * shared.f_frsize,
        )


def faulted_bytes() -> int:
    """Memory this process has touched for the first time so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * _PAGE_BYTES


def release_free_memory() -> None:
    """Collect garbage and give what is free back to the kernel, so that peers start alike."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc has it, others do not
        _LIBC.malloc_trim(0)


def _peak_bytes() -> int:
    return _status_bytes(os.getpid(), "VmHWM")


def _descendants() -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    parents = {pid: _parent(pid) for pid in pids}
    found: list[int] = []
    frontier = {os.getpid()}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += frontier
    return found


def _count_in(directory: str) -> int:
    return sum(1 for _ in Path(directory).iterdir())


def _parent(pid: int) -> int:
    fields = _stat_fields(pid)
    return int(fields[1]) if fields else -1


def _cpu_seconds(pid: int) -> float:
    if pid == os.getpid():
        return time.process_time()
    fields = _stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND if fields else 0.0


def _stat_fields(pid: int) -> list[str]:
    """From the state on; the name before it may hold spaces. Empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _transferred(pid: int) -> tuple[int, int]:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0, 0
    return int(lines[0].split()[1]), int(lines[1].split()[1])


def _status_bytes(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)
