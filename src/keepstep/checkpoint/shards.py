"""Where everything of one rank's shard file lies: known from the plan, before a byte is written.

::

    | frame | frame | ... | frame | values | zeros to a whole page |
       `-- what stands before the chunk's data, the data, what stands after it

Frames and their order depend on names, dtypes and shapes alone, so one layout serves every save of
the same plan, and the file's image can be kept in memory from save to save. Values, whose sizes
change, come last.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem

from keepstep.checkpoint.digest import ChunkPlace, format_digest
from keepstep.checkpoint.frames import FrameLayout, dtype_name, tensor_frame
from keepstep.commit.blocks import FileBlocks, RunChecksums, crc32c_digest, fold_checksums
from keepstep.commit.index import Frame, encode_frame, encode_index, frame_template
from keepstep.commit.layout import shard_filename
from keepstep.errors import InternalError

PAGE_BYTES = 4096

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one chunk."""

    item: WriteItem
    frame: FrameLayout
    offset: int
    """Of the frame, from the start of the file."""
    data_offset: int
    """Of the chunk's data, from the start of the file."""
    data_end: int
    place: ChunkPlace

    @property
    def tensor(self) -> TensorWriteData:
        return described(self.item)


class Part(NamedTuple):
    """Some bytes of one chunk's data."""

    number: int
    """Of the slot."""
    start: int
    """Bytes from the start of the chunk's data."""
    offset: int
    """Bytes from the start of the file."""
    size_bytes: int


class ShardLayout:
    """The places of a shard's chunks, in the order of ``items``, which must be tensors."""

    def __init__(self, items: Iterable[WriteItem]) -> None:
        self.slots = tuple(_slot(*framed) for framed in _framed(items))
        last = self.slots[-1] if self.slots else None
        self.size_bytes = last.offset + last.frame.length if last else 0
        """Of all frames together; values begin here."""
        self._data_ends = [slot.data_end for slot in self.slots]

    def parts(self, start: int, stop: int) -> list[Part]:
        """The data between two places in the file, chunk by chunk."""
        found = []
        for number in range(bisect_right(self._data_ends, start), len(self.slots)):
            slot = self.slots[number]
            low, high = max(start, slot.data_offset), min(stop, slot.data_end)
            if low < high:
                found.append(Part(number, low - slot.data_offset, low, high - low))
            if slot.data_end >= stop:
                break
        return found

    def write_frames(self, image: memoryview, start: int, stop: int) -> None:
        """Put everything but the data that is between two places into ``image``.

        Args:
            image: Begins at ``start``.
        """
        for number in range(bisect_right(self._data_ends, start), len(self.slots) + 1):
            low = self._data_ends[number - 1] if number else 0
            between = self._between(number)
            first, last = max(start, low), min(stop, low + len(between))
            if first < last:
                image[first - start : last - start] = between[first - low : last - low]
            if low + len(between) >= stop:
                return

    def _between(self, number: int) -> bytes:
        """What stands before the data of a slot, back to the data of the one before."""
        before = self.slots[number - 1].frame.suffix if number else b""
        after = self.slots[number].frame.prefix if number < len(self.slots) else b""
        return before + after


@dataclass(frozen=True, slots=True)
class Values:
    """Serialized values as they follow each other behind the frames, and zeros up to a page."""

    items: tuple[WriteItem, ...]
    sizes: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, items: Sequence[WriteItem], values: Sequence[bytes], offset: int) -> "Values":
        """The values of ``items``, to be put at ``offset``."""
        joined = b"".join(values)
        padding = -(offset + len(joined)) % PAGE_BYTES
        sizes = tuple(len(value) for value in values)
        return cls(tuple(items), sizes, joined + bytes(padding))

    def each(self) -> Iterator[tuple[WriteItem, int, bytes]]:
        """Item, bytes from the first value, and content."""
        offset = 0
        for item, size in zip(self.items, self.sizes, strict=True):
            yield item, offset, self.data[offset : offset + size]
            offset += size


def chunk_places(items: Iterable[WriteItem], file: str) -> Iterator[tuple[WriteItem, _StorageInfo]]:
    """Where stock DCP finds each chunk of a shard file with these items."""
    for item, frame, offset in _framed(items):
        yield item, _StorageInfo(file, offset, frame.length)


def value_places(
    values: Values, layout: ShardLayout, file: str
) -> Iterator[tuple[WriteItem, _StorageInfo]]:
    """Where stock DCP finds each value."""
    for item, offset, data in values.each():
        yield item, _StorageInfo(file, layout.size_bytes + offset, len(data))


class ShardIndex:
    """What the index says of a shard file; all but digests and values is made once.

    Args:
        paths: Where entries sit in the nested state dict, by name.
    """

    def __init__(self, rank: int, layout: ShardLayout, paths: Mapping[str, Path]) -> None:
        self.rank = rank
        self.file = shard_filename(rank, 0)
        self._layout = layout
        self._paths = paths
        self._chunks = [frame_template(self._chunk(slot)) for slot in layout.slots]

    def encoded(
        self, digests: Sequence[int], values: Values, checksums: Iterable[RunChecksums]
    ) -> tuple[bytes, FileBlocks]:
        """The index as it is stored, and what it says of the file.

        Args:
            digests: Content digest of each slot's chunk.
            checksums: Of the file's parts.
        """
        blocks = fold_checksums(self.file, checksums)
        chunks = (
            before + format_digest(digest).encode() + after
            for (before, after), digest in zip(self._chunks, digests, strict=True)
        )
        values_of_file = (encode_frame(self._value(*each)) for each in values.each())
        return encode_index(self.rank, chain(chunks, values_of_file), [blocks]), blocks

    def _chunk(self, slot: Slot) -> Frame:
        tensor = slot.tensor
        return Frame(
            fqn=slot.item.index.fqn,
            path=self._path(slot.item),
            kind="tensor",
            file=self.file,
            offset=slot.offset,
            length=slot.frame.length,
            data_offset=slot.data_offset,
            data_bytes=slot.frame.data_bytes,
            digest="",
            dtype=dtype_name(tensor.properties.dtype),
            global_shape=tuple(tensor.size),
            offsets=tuple(tensor.chunk.offsets),
            shape=tuple(tensor.chunk.sizes),
        )

    def _value(self, item: WriteItem, place: int, data: bytes) -> Frame:
        offset = self._layout.size_bytes + place
        return Frame(
            fqn=item.index.fqn,
            path=self._path(item),
            kind="value",
            file=self.file,
            offset=offset,
            length=len(data),
            data_offset=offset,
            data_bytes=len(data),
            digest=crc32c_digest(data),
        )

    def _path(self, item: WriteItem) -> Path:
        return tuple(self._paths.get(item.index.fqn, (item.index.fqn,)))


def described(item: WriteItem) -> TensorWriteData:
    """What the plan says of a tensor's chunk. *Raises:* ``InternalError`` if it says nothing."""
    if item.tensor_data is None:
        raise InternalError(f"the plan does not describe {item.index.fqn}")
    return item.tensor_data


def _framed(items: Iterable[WriteItem]) -> Iterator[tuple[WriteItem, FrameLayout, int]]:
    """Each item with its frame, and where that begins."""
    offset = 0
    for item in items:
        tensor = described(item)
        frame = tensor_frame(tensor.properties.dtype, tensor.chunk.sizes, offset)
        yield item, frame, offset
        offset += frame.length


def _slot(item: WriteItem, frame: FrameLayout, offset: int) -> Slot:
    tensor = described(item)
    chunk = tensor.chunk
    place = ChunkPlace.of(
        item.index.fqn, tensor.properties.dtype, chunk.sizes, chunk.offsets, tensor.size
    )
    begin = offset + len(frame.prefix)
    return Slot(item, frame, offset, begin, begin + frame.data_bytes, place)
