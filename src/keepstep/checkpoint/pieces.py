"""Pieces: ranges of bytes of a file, and the memory in which they end.

A piece receives its bytes in any order, from several threads, every byte once and verified.
"""

import ctypes
import threading
from typing import Protocol

import torch

from keepstep.checkpoint.frames import tensor_memory
from keepstep.checkpoint.host_memory import SMALL_BYTES, fresh_pages, move_bytes
from keepstep.checkpoint.spans import Span


class Piece(Protocol):
    """Bytes ``start`` to ``stop`` of a file, on their way."""

    start: int
    stop: int

    def place(self, start: int, stop: int) -> memoryview:
        """Where these bytes of the file can be put; :meth:`arrived` must follow."""
        ...

    def arrived(self, count: int) -> None:
        """``count`` bytes are in their place and good."""
        ...

    def take(self, start: int, data: memoryview) -> None:
        """Copy bytes that are good, from ``start`` on."""
        ...


class DirectPiece:
    """Ends in contiguous host memory, and is read straight into it."""

    __slots__ = ("_memory", "start", "stop")

    def __init__(self, start: int, memory: memoryview) -> None:
        self.start = start
        self.stop = start + len(memory)
        self._memory = memory

    def place(self, start: int, stop: int) -> memoryview:
        return self._memory[start - self.start : stop - self.start]

    def arrived(self, count: int) -> None:
        pass

    def take(self, start: int, data: memoryview) -> None:
        _copy(self.place(start, start + len(data)), data)


class BouncedPiece:
    """Ends on a device, between other elements, or in another dtype: it waits in a buffer until it
    is whole, and is then copied by torch.
    """

    __slots__ = ("_buffer", "_buffers", "_dtype", "_lock", "_missing", "_span", "_target", "start",
                 "stop")  # fmt: skip

    def __init__(
        self,
        start: int,
        span: Span,
        target: torch.Tensor,
        dtype: torch.dtype,
        buffers: "Buffers",
    ) -> None:
        self.start = start
        self.stop = start + span.size * dtype.itemsize
        self._span = span
        self._target = target
        self._dtype = dtype
        self._buffers = buffers
        self._buffer: memoryview | None = None
        self._missing = self.stop - self.start
        self._lock = threading.Lock()

    def place(self, start: int, stop: int) -> memoryview:
        with self._lock:
            if self._buffer is None:
                self._buffer = self._buffers.take(self.stop - self.start)
            return self._buffer[start - self.start : stop - self.start]

    def arrived(self, count: int) -> None:
        with self._lock:
            self._missing -= count
            is_whole = self._missing == 0
        if is_whole:
            self._land(self.place(self.start, self.stop))
            if self._buffer is not None:
                self._buffers.give(self._buffer)
                self._buffer = None

    def take(self, start: int, data: memoryview) -> None:
        if len(data) == self.stop - self.start:
            self._land(data)
        else:
            _copy(self.place(start, start + len(data)), data)
            self.arrived(len(data))

    def _land(self, data: memoryview) -> None:
        flat = torch.frombuffer(data, dtype=torch.uint8)
        if flat.data_ptr() % self._dtype.itemsize:
            flat = flat.clone()  # only a file of another writer can place elements like this
        rows = flat.view(self._dtype).view(self._span.shape)
        self._target.copy_(rows[self._span.wanted])


class Buffers:
    """Host memory that is used again and again. Thread-safe.

    Pinned if ``is_pinned``, for copies to a CUDA device.
    """

    def __init__(self, size_bytes: int, *, is_pinned: bool = False) -> None:
        self._size_bytes = size_bytes
        self._is_pinned = is_pinned
        self._free: list[memoryview] = []
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> memoryview:
        """A buffer of at least ``size_bytes``."""
        if size_bytes > self._size_bytes:
            return self._new(size_bytes)
        with self._lock:
            if self._free:
                return self._free.pop()
        return self._new(self._size_bytes)

    def give(self, buffer: memoryview) -> None:
        """Give a buffer back. One of unusual size is let go."""
        if len(buffer) == self._size_bytes:
            with self._lock:
                self._free.append(buffer)

    def _new(self, size_bytes: int) -> memoryview:
        if self._is_pinned:
            pinned = torch.empty(size_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
            return tensor_memory(pinned)
        return memoryview(fresh_pages(size_bytes))


def _copy(target: memoryview, source: memoryview) -> None:
    """Copy, letting other threads run meanwhile if it is much."""
    if len(source) < SMALL_BYTES:
        target[:] = source
    else:
        move_bytes(_address(target), _address(source), len(source))


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
