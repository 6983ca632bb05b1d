"""The staged copy of a shard: its file's image in host memory, kept from save to save."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from keepstep.checkpoint.contents import Piece, portions_of, put_values
from keepstep.checkpoint.host_memory import CopyStreams, HostBuffer, copy_bytes
from keepstep.checkpoint.parallel import for_each
from keepstep.checkpoint.shards import ShardLayout, Values
from keepstep.errors import CommitAborted

UNGUARDED = (
    "tensors may have changed while they were copied: the optimizer step was not inside "
    "`with session.guard():`; guard it, or save in async mode"
)

_ROOM_FOR_VALUES_BYTES = 1 << 20

_COPY_THREADS = 4
"""One core alone does not get all of the memory's bandwidth."""

_TASK_BYTES = 8 << 20
_ROUND_TASKS = 128
"""Copied between two signs of life."""


Version = tuple[torch.Tensor, int]
"""A tensor, and what its version counter said before it was copied."""


class Staging:
    """One rank's staging memory: as large as its shard, allocated once per layout.

    What stands around the data is written when the memory is allocated; from then on a save copies
    the data and nothing else. One save at a time.
    """

    def __init__(self, streams: CopyStreams) -> None:
        self.allocations = 0
        """How often memory was allocated, so far."""
        self._buffer: HostBuffer | None = None
        self._layout: ShardLayout | None = None
        self._streams = streams

    def prepare(
        self,
        layout: ShardLayout,
        sources: Sequence[torch.Tensor],
        values: Values,
        alive: Callable[[], None],
    ) -> "StagedContents":
        """The contents to be, whose data has yet to be copied. What was staged before is gone.

        Args:
            sources: The chunk of each slot of the layout.
            alive: Called now and then.
        """
        size_bytes = layout.size_bytes + len(values.data)
        ready = self._streams.now(sources)
        buffer = self._fitting(size_bytes, bool(ready), alive)
        if self._layout is not layout:
            layout.write_frames(buffer.view, 0, layout.size_bytes)
            self._layout = layout
        put_values(values, layout.size_bytes, buffer.view, 0, size_bytes)
        return StagedContents(layout, values, sources, buffer, self._streams, ready)

    def close(self) -> None:
        """Free the memory."""
        if self._buffer is not None:
            self._buffer.close()
        self._buffer = self._layout = None

    def _fitting(self, size_bytes: int, is_pinned: bool, alive: Callable[[], None]) -> HostBuffer:
        buffer = self._buffer
        if buffer is not None and len(buffer.view) >= size_bytes and buffer.is_pinned == is_pinned:
            return buffer
        self.close()
        size_bytes += _ROOM_FOR_VALUES_BYTES
        self._buffer = HostBuffer(size_bytes, is_pinned=is_pinned, alive=alive)
        self.allocations += 1
        return self._buffer


class _Part(NamedTuple):
    """Some bytes of one slot's data."""

    number: int
    start: int
    size_bytes: int


class StagedContents:
    """A shard file's bytes in staging memory."""

    def __init__(
        self,
        layout: ShardLayout,
        values: Values,
        sources: Sequence[torch.Tensor],
        buffer: HostBuffer,
        streams: CopyStreams,
        ready: Mapping[torch.device, torch.cuda.Event],
    ) -> None:
        self.layout = layout
        self.values = values
        self._sources = sources
        self._buffer = buffer
        self._streams = streams
        self._ready = ready

    def copy(self, numbers: Sequence[int], alive: Callable[[], None]) -> None:
        """Copy the data of some slots.

        *Blocks:* until they are copied. Copies from a device run on a stream of their own, behind
        what the current stream had been given when the contents were prepared.
        """
        if not numbers:
            return  # not even the streams need be waited for
        # A device copies by itself, and its stream is current in this thread alone.
        num_threads = 1 if self._ready else _COPY_THREADS
        with self._streams.after(self._ready):
            for one_round in _rounds(self._parts(numbers)):
                for_each(one_round, self._copy_parts, num_threads=num_threads)
                alive()

    def copy_unchanged(self, numbers: Sequence[int], versions: Sequence[Version]) -> None:
        """Copy the data of some slots while training goes on.

        *Raises:* ``CommitAborted`` if a tensor has changed meanwhile and its version counter tells.
        """
        self.copy(numbers, lambda: None)
        if any(tensor._version != version for tensor, version in versions):
            raise CommitAborted(UNGUARDED)

    def release(self) -> None:
        """Let go of the tensors: everything is copied."""
        self._sources = ()

    def _parts(self, numbers: Sequence[int]) -> Iterator[_Part]:
        for number in numbers:
            size_bytes = self.layout.slots[number].frame.data_bytes
            for start in range(0, size_bytes, _TASK_BYTES):
                yield _Part(number, start, min(_TASK_BYTES, size_bytes - start))

    @torch.no_grad()
    def _copy_parts(self, parts: Sequence[_Part]) -> None:
        for part in parts:
            offset = self.layout.slots[part.number].data_offset + part.start
            source = self._sources[part.number]
            copy_bytes(source, part.start, self._buffer, offset, part.size_bytes)

    @contextmanager
    def piece(self, start: int, stop: int) -> Iterator[Piece]:
        data = self._buffer.view[start:stop]
        yield Piece(data, portions_of(self.layout, data, start))


def _rounds(parts: Iterable[_Part]) -> Iterator[list[list[_Part]]]:
    """Parts in tasks of about the same size, and tasks in rounds."""
    tasks: list[list[_Part]] = [[]]
    size_bytes = 0
    for part in parts:
        if size_bytes + part.size_bytes > _TASK_BYTES and tasks[-1]:
            if len(tasks) == _ROUND_TASKS:
                yield tasks
                tasks = []
            tasks.append([])
            size_bytes = 0
        tasks[-1].append(part)
        size_bytes += part.size_bytes
    yield tasks
