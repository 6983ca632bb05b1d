"""Reading shard files block by block: no byte counts before its checksum was compared."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from awscrt.checksums import crc32c

from keepstep.commit.blocks import FileBlocks
from keepstep.commit.manifest import Manifest
from keepstep.commit.ranges import cut, merged, outside
from keepstep.errors import CorruptCheckpointError
from keepstep.storage.base import ObjectReader, Storage

READ_BYTES = 8 << 20
"""Worth reading in one call; beyond that nothing gets faster."""


@dataclass(frozen=True, slots=True)
class BlocksRead:
    """What came of reading consecutive blocks."""

    bytes_read: int
    """From the store, including what was read twice."""
    damaged: dict[int, str] = field(default_factory=dict)
    """What is wrong, by block."""


class VerifiedFile:
    """One shard file that is being read. Thread-safe."""

    def __init__(self, reader: ObjectReader, key: str, blocks: FileBlocks) -> None:
        self._reader = reader
        self.key = key
        self.blocks = blocks

    @property
    def wrong_size(self) -> str | None:
        """What is wrong with the file's size, if anything is."""
        size_bytes = self._reader.size_bytes
        if size_bytes == self.blocks.size_bytes:
            return None
        return f"has {size_bytes} bytes instead of {self.blocks.size_bytes}"

    def check_size(self) -> None:
        """*Raises:* ``CorruptCheckpointError`` naming the block where the sizes part."""
        if self.wrong_size is None:
            return
        shorter = min(self._reader.size_bytes, self.blocks.size_bytes)
        block = shorter // self.blocks.block_bytes
        raise CorruptCheckpointError(
            f"{self.key} block {block}: the file {self.wrong_size}", key=self.key, block=block
        )

    def read(self, numbers: range, buffer: memoryview) -> int:
        """Fill ``buffer`` with whole blocks, and exactly these; returns bytes read.

        *Raises:* ``CorruptCheckpointError`` naming the first damaged block.
        """
        outcome = self.examine(numbers, buffer)
        for block, reason in outcome.damaged.items():
            raise CorruptCheckpointError(
                f"{self.key} block {block}: {reason}", key=self.key, block=block
            )
        return outcome.bytes_read

    def examine(self, numbers: range, buffer: memoryview) -> BlocksRead:
        """As :meth:`read`, for someone who wants to know of every damaged block."""
        start = numbers.start * self.blocks.block_bytes
        filled = bytes_read = self._reader.read_into(start, buffer)
        damaged = {}
        for number in bad_blocks(self.blocks, numbers, buffer[:filled]):
            begins = number * self.blocks.block_bytes - start
            block = buffer[begins : begins + self.blocks.block_size(number)]
            # A bad transfer passes, a bad copy stays.
            count = self._reader.read_into(start + begins, block)
            bytes_read += count
            if not self.blocks.block_is_good(number, block[:count]):
                damaged[number] = "checksum mismatch" if count == len(block) else "cut short"
        return BlocksRead(bytes_read, damaged)


@contextmanager
def open_verified(
    storage: Storage, manifest: Manifest, blocks: FileBlocks
) -> Iterator[VerifiedFile]:
    """Open a shard file of a checkpoint. *Raises:* ``ObjectNotFound``."""
    key = manifest.id.key(blocks.file)
    with storage.open_reader(key) as reader:
        yield VerifiedFile(reader, key, blocks)


def bad_blocks(blocks: FileBlocks, numbers: range, data: memoryview) -> list[int]:
    """The blocks that consecutive bytes, from the first block on, do not have right or whole."""
    # Checksums fold: one pass over all blocks, without the GIL, finds what one over each would.
    if len(data) == blocks.bytes_in(numbers) and crc32c(data) == blocks.folded(numbers):
        return []
    size = blocks.block_bytes
    starts = [(number - numbers.start) * size for number in numbers]
    return [
        number
        for number, start in zip(numbers, starts, strict=True)
        if not blocks.block_is_good(number, data[start : start + size])
    ]


def calls(blocks: FileBlocks, numbers: range) -> Iterator[range]:
    """Cut consecutive blocks into what is read in one call."""
    return cut(numbers, max(1, READ_BYTES // blocks.block_bytes))


def unread(
    files: Mapping[str, FileBlocks], read: Iterable[Mapping[str, Iterable[range]]]
) -> list[tuple[str, range]]:
    """Blocks that nobody has read, as far as a call each; ``read`` holds what each rank has."""
    everything: dict[str, list[range]] = {file: [] for file in files}
    for found in read:
        for file, ranges in found.items():
            everything[file] += ranges
    return [
        (file, call)
        for file, blocks in files.items()
        for numbers in outside(merged(everything[file]), len(blocks.blocks))
        for call in calls(blocks, numbers)
    ]
