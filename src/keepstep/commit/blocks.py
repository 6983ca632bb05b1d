"""Checksums: CRC32C over fixed blocks of a file, and digests of whole objects.

A digest is written ``<algorithm>:<hex>``. Shard files carry ``crc32c``, which folds out of the
checksums of their blocks, so that any byte range can be verified by itself and the file as a whole
without another pass. Small objects carry ``sha256``. CRC32C finds every error that disks and
networks make up to its 2^-32; it is no defense against someone who forges data on purpose.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from awscrt.checksums import combine_crc32c, crc32c

from keepstep.errors import InternalError
from keepstep.storage.base import Buffer

BLOCK_BYTES = 32 << 10
"""Small enough that a slice of a tensor is read without much around it, large enough that checksums
cost next to nothing: 8 bytes of text per block."""


@dataclass(frozen=True, slots=True)
class FileBlocks:
    """The checksums of one file."""

    file: str
    size_bytes: int
    digest: str
    block_bytes: int
    blocks: tuple[int, ...]
    """CRC32C of each block; the last block may be short."""

    def __post_init__(self) -> None:
        expected = -(-self.size_bytes // self.block_bytes)
        if len(self.blocks) != expected:
            msg = f"{len(self.blocks)} checksums for {expected} blocks"
            raise InternalError(msg, key=self.file)

    def block_size(self, number: int) -> int:
        """Bytes in block ``number``."""
        return min(self.block_bytes, self.size_bytes - number * self.block_bytes)

    def bytes_in(self, numbers: range) -> int:
        """Bytes in consecutive blocks."""
        start = numbers.start * self.block_bytes
        return min(numbers.stop * self.block_bytes, self.size_bytes) - start

    def folded(self, numbers: range) -> int:
        """The CRC32C of consecutive blocks together."""
        folded = 0
        for crc in self.blocks[numbers.start : numbers.stop - 1]:
            folded = combine_crc32c(folded, crc, self.block_bytes)
        if not numbers:
            return folded
        last = numbers[-1]
        return int(combine_crc32c(folded, self.blocks[last], self.block_size(last)))

    def block_is_good(self, number: int, data: Buffer) -> bool:
        """Whether ``data`` is block ``number``, by length and checksum."""
        return len(data) == self.block_size(number) and crc32c(data) == self.blocks[number]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "bytes": self.size_bytes,
            "digest": self.digest,
            "block_bytes": self.block_bytes,
            "blocks": struct.pack(f">{len(self.blocks)}I", *self.blocks).hex(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FileBlocks":
        packed = bytes.fromhex(data["blocks"])
        blocks = struct.unpack(f">{len(packed) // 4}I", packed)
        found = cls(data["file"], data["bytes"], data["digest"], data["block_bytes"], blocks)
        if found.digest != f"crc32c:{found.folded(range(len(blocks))):08x}":
            msg = "the file's digest is not what its blocks fold to"
            raise InternalError(msg, key=found.file)
        return found


@dataclass(frozen=True, slots=True)
class RunChecksums:
    """The CRC32C of each block, or part of one, in a run of a file's bytes."""

    offset: int
    size_bytes: int
    crcs: list[int]


def run_checksums(offset: int, data: Buffer, block_bytes: int = BLOCK_BYTES) -> RunChecksums:
    """The checksums of the bytes of a file from ``offset`` on, cut where blocks end. No copies."""
    view = memoryview(data).cast("B")
    head = min(-offset % block_bytes, len(view))
    crcs = [crc32c(view[:head])] if head else []
    crcs += [crc32c(view[at : at + block_bytes]) for at in range(head, len(view), block_bytes)]
    return RunChecksums(offset, len(view), crcs)


def fold_checksums(
    file: str, runs: Iterable[RunChecksums], block_bytes: int = BLOCK_BYTES
) -> FileBlocks:
    """The checksums of a file from those of its runs, which may come in any order.

    *Raises:* ``InternalError`` if the runs do not cover the file once.
    """
    blocks: list[int] = []
    size_bytes = whole = 0
    for run in sorted(runs, key=lambda run: run.offset):
        if run.offset != size_bytes:
            raise InternalError(
                f"bytes {size_bytes} to {run.offset} were hashed twice or not at all", key=file
            )
        end = run.offset + run.size_bytes
        for crc in run.crcs:
            within = size_bytes % block_bytes
            part_bytes = min(block_bytes - within, end - size_bytes)
            if within:
                blocks[-1] = combine_crc32c(blocks[-1], crc, part_bytes)
            else:
                blocks.append(crc)
            whole = combine_crc32c(whole, crc, part_bytes)
            size_bytes += part_bytes
    return FileBlocks(file, size_bytes, f"crc32c:{whole:08x}", block_bytes, tuple(blocks))


def crc32c_digest(data: Buffer) -> str:
    """The digest of a run of bytes in a shard file."""
    return f"crc32c:{crc32c(data):08x}"


def sha256_digest(data: Buffer) -> str:
    """The digest of a small object."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
