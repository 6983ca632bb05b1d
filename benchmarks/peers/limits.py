"""What the machine can do: as many bytes as the state has, moved by the shortest program."""

import ctypes
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.base import Context, Peer, Pending
from benchmarks.scenario import Scenario

_PIECE_BYTES = 8 << 20
_PAGE_BYTES = 4096


class _Disk(Peer):
    """Each rank writes and reads a file with its share of the state, from ready buffers."""

    is_limit = True
    threads: ClassVar[int] = 1
    is_direct: ClassVar[bool] = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        share = context.state.local_bytes
        if context.is_replicated:
            share //= context.ranks.count
        self._file_bytes = -(-share // _PAGE_BYTES) * _PAGE_BYTES
        self._buffers = [_random_buffer() for _ in range(self.threads)]

    @classmethod
    def refusal(cls, scenario: Scenario) -> str | None:
        if cls.is_direct and not hasattr(os, "O_DIRECT"):
            return "no O_DIRECT on this system"
        return None

    def save(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        flags = os.O_CREAT | os.O_WRONLY | self._direct_flag
        descriptor = os.open(self._file(directory, self.context.ranks.rank), flags, 0o600)
        try:
            if self.is_direct:
                os.posix_fallocate(descriptor, 0, self._file_bytes)
            self._in_pieces(lambda piece, offset: os.pwrite(descriptor, piece, offset))
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self.context.ranks.wait()
        return directory

    def load(self, saved: Path) -> None:
        mine = [self.context.ranks.rank]
        for rank in range(self.context.ranks.count) if self.context.is_replicated else mine:
            descriptor = os.open(self._file(saved, rank), os.O_RDONLY | self._direct_flag)
            try:
                self._in_pieces(lambda piece, offset: os.preadv(descriptor, [piece], offset))  # noqa: B023  # done before the next file
            finally:
                os.close(descriptor)

    @property
    def _direct_flag(self) -> int:
        return os.O_DIRECT if self.is_direct else 0

    def _file(self, directory: Path, rank: int) -> Path:
        return directory / f"rank-{rank}.bin"

    def _in_pieces(self, move: Callable[[memoryview, int], int]) -> None:
        """Every thread moves a consecutive part, through a buffer of its own."""

        def move_part(number: int) -> None:
            buffer = memoryview(self._buffers[number])
            offset, end = number * part, min((number + 1) * part, self._file_bytes)
            while offset < end:
                moved = move(buffer[: min(_PIECE_BYTES, end - offset)], offset)
                if not moved:
                    raise EOFError(f"a limit's file ends at {offset} of {self._file_bytes} bytes")
                offset += moved

        pages = -(-self._file_bytes // _PAGE_BYTES)
        part = -(-pages // self.threads) * _PAGE_BYTES
        if self.threads == 1:
            move_part(0)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(move_part, range(self.threads)))


class Buffered(_Disk):
    """``write`` into the page cache, then ``fdatasync``; ``read`` through the page cache."""

    name = "limit-buffered"
    is_direct = False


class Direct(_Disk):
    """``O_DIRECT`` into allocated space, one thread."""

    name = "limit-direct-1"


class DirectTwo(_Disk):
    """The same with two threads per rank."""

    name = "limit-direct-2"
    threads = 2


class DirectFour(_Disk):
    """The same with four threads per rank."""

    name = "limit-direct-4"
    threads = 4


class Memcpy(Peer):
    """One copy of the state's memory into memory that is already there."""

    name = "limit-memcpy"
    is_limit = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._target = mmap.mmap(-1, max(1, context.state.local_bytes))
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._target))
        ctypes.memset(self._address, 1, len(self._target))  # every page is there from now on
        self._sources: list[tuple[int, int]] = []

    @classmethod
    def refusal(cls, scenario: Scenario) -> str | None:
        return "the state is not in host memory" if scenario.device == "cuda" else None

    def prepare(self) -> None:
        self._sources = [(t.data_ptr(), t.nbytes) for t in self.context.state.local_tensors]

    def start(self, directory: Path) -> Pending:
        offset = 0
        for address, size_bytes in self._sources:
            ctypes.memmove(self._address + offset, address, size_bytes)
            offset += size_bytes
        return Pending(directory, wait=self.context.ranks.wait)

    def load(self, saved: Path) -> None:
        raise NotImplementedError(f"memory is not loaded from {saved}")


def _random_buffer() -> mmap.mmap:
    """Page-aligned, as ``O_DIRECT`` wants it; random, so that no device compresses it."""
    buffer = mmap.mmap(-1, _PIECE_BYTES)
    buffer[:] = os.urandom(_PIECE_BYTES)
    return buffer
