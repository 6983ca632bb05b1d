"""What a shard file is to contain, piece by piece: from the tensors themselves, or from a copy."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from queue import SimpleQueue
from typing import NamedTuple, Protocol

import torch

from keepstep.checkpoint.host_memory import CopyStreams, HostBuffer, copy_bytes
from keepstep.checkpoint.shards import Part, ShardLayout, Values

PIECE_BYTES = 8 << 20
"""Written by one call."""

_PORTION_BYTES = 512 << 10
"""Gathered and hashed before the next: small enough to be in a core's own cache meanwhile."""


class Portion(NamedTuple):
    """Consecutive bytes of a shard file."""

    start: int
    """Bytes from the start of the file."""
    data: memoryview
    parts: list[Part]
    """What of it is tensors' data."""


class Contents(Protocol):
    """A shard file's bytes. Thread-safe."""

    @property
    def layout(self) -> ShardLayout: ...

    @property
    def values(self) -> Values: ...

    def piece(self, start: int, stop: int) -> AbstractContextManager["Piece"]:
        """The bytes between two places in the file, while the block lasts."""
        ...


class Piece:
    """Consecutive bytes of a shard file.

    Args:
        data: Where the bytes are, or will be once all portions were taken.
        portions: Gives them one after the other, each as soon as it is there.
    """

    def __init__(self, data: memoryview, portions: Iterator[Portion]) -> None:
        self.data = data
        self.portions = portions


class Slabs:
    """A few buffers of one piece each, made when they are first needed and kept.

    Args:
        count: At most so many at once; who wants another one waits.
    """

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[HostBuffer | None] = SimpleQueue()
        self._count = count
        self.allocations = 0
        for _ in range(count):
            self._free.put(None)

    @contextmanager
    def one(self, *, is_pinned: bool) -> Iterator[HostBuffer]:
        """Borrow a slab. *Blocks:* until one is free."""
        slab = self._free.get()
        try:
            if slab is not None and slab.is_pinned != is_pinned:
                slab.close()
                slab = None
            if slab is None:
                slab = HostBuffer(PIECE_BYTES, is_pinned=is_pinned)
                self.allocations += 1
            yield slab
        finally:
            self._free.put(slab)

    def close(self) -> None:
        """Free the slabs. None may be in use."""
        for _ in range(self._count):
            slab = self._free.get()
            if slab is not None:
                slab.close()
            self._free.put(None)


class LiveContents:
    """Gathers each piece from the tensors themselves, which must not change meanwhile.

    Args:
        sources: The chunk of each slot of the layout, on any device, with any strides.
    """

    def __init__(
        self,
        layout: ShardLayout,
        sources: Sequence[torch.Tensor],
        values: Values,
        slabs: Slabs,
        streams: CopyStreams,
    ) -> None:
        self.layout = layout
        self.values = values
        self._sources = sources
        self._slabs = slabs
        self._streams = streams
        self._ready = self._streams.now(sources)

    @contextmanager
    def piece(self, start: int, stop: int) -> Iterator[Piece]:
        is_pinned = bool(self._ready)
        with self._streams.device(self._ready), self._slabs.one(is_pinned=is_pinned) as slab:
            view = slab.view[: stop - start]
            if is_pinned:  # a device is waited for once per piece
                whole = Portion(start, view, self.layout.parts(start, stop))
                with self._streams.after(self._ready):
                    self._gather(slab, start, whole)
                yield Piece(view, portions_of(self.layout, view, start))
            else:
                yield Piece(view, self._gathered(slab, view, start))

    def _gathered(self, slab: HostBuffer, view: memoryview, start: int) -> Iterator[Portion]:
        for portion in portions_of(self.layout, view, start):
            self._gather(slab, start, portion)
            yield portion

    @torch.no_grad()
    def _gather(self, slab: HostBuffer, base: int, portion: Portion) -> None:
        """Put the bytes of a portion where they belong in a slab that begins at ``base``."""
        start, view, parts = portion
        stop = start + len(view)
        self.layout.write_frames(view, start, stop)
        for number, within, offset, size_bytes in parts:
            copy_bytes(self._sources[number], within, slab, offset - base, size_bytes)
        put_values(self.values, self.layout.size_bytes, view, start, stop)


def portions_of(layout: ShardLayout, data: memoryview, start: int) -> Iterator[Portion]:
    """Cut the bytes from ``start`` on into portions, at multiples of their size in the file."""
    low, stop = start, start + len(data)
    while low < stop:
        high = min(stop, (low // _PORTION_BYTES + 1) * _PORTION_BYTES)
        yield Portion(low, data[low - start : high - start], layout.parts(low, high))
        low = high


def put_values(values: Values, offset: int, image: memoryview, start: int, stop: int) -> None:
    """Put the part of the values that is between two places in the file into ``image``.

    Args:
        offset: Of the values in the file.
        image: Begins at ``start``.
    """
    low, high = max(start, offset), min(stop, offset + len(values.data))
    if low < high:
        image[low - start : high - start] = values.data[low - offset : high - offset]
