"""The staged copy of a shard: its file's image in host memory, kept from save to save."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from keepstep.checkpoint.contents import Piece, portions_of, put_values
from keepstep.checkpoint.host_memory import CopyStreams, HostBuffer, copy_bytes
from keepstep.checkpoint.shards import ShardLayout, Values
from keepstep.errors import CommitAborted

CHANGED_WHILE_COPIED = (
    "tensors were changed while they were copied: the optimizer step was not inside "
    "`with session.guard():`; guard it, or save in async mode"
)

_ROOM_FOR_VALUES_BYTES = 1 << 20


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
        self._versions = [source._version for source in sources]
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
        slots = self.layout.slots
        with self._streams.after(self._ready):
            for number in numbers:
                slot, source = slots[number], self._sources[number]
                copy_bytes(source, 0, self._buffer, slot.data_offset, slot.frame.data_bytes)
                alive()

    def copy_unchanged(self, numbers: Sequence[int]) -> None:
        """Copy the data of some slots while training goes on.

        *Raises:* ``CommitAborted`` if a tensor has changed since the contents were prepared, as far
        as its version counter tells.
        """
        self.copy(numbers, lambda: None)
        if any(self._sources[n]._version != self._versions[n] for n in numbers):
            raise CommitAborted(CHANGED_WHILE_COPIED)

    def release(self) -> None:
        """Let go of the tensors: everything is copied."""
        self._sources = ()

    @contextmanager
    def piece(self, start: int, stop: int) -> Iterator[Piece]:
        data = self._buffer.view[start:stop]
        yield Piece(data, portions_of(data, start))
