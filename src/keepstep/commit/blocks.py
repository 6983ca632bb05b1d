"""Checksums: CRC32C over fixed blocks of a file, and digests of whole objects.

A digest is written ``<algorithm>:<hex>``. Shard files carry ``crc32c``, which folds out of the
checksums of their blocks, so that any byte range can be verified by itself and the file as a whole
without another pass. Small objects carry ``sha256``. CRC32C finds every error that disks and
networks make up to its 2^-32; it is no defense against someone who forges data on purpose.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from awscrt.checksums import combine_crc32c, crc32c
from numpy.typing import NDArray

from keepstep.errors import InternalError
from keepstep.storage.base import Buffer

BLOCK_BYTES = 32 << 10
"""Small enough that a slice of a tensor is read without much around it, large enough that checksums
cost next to nothing: 8 bytes of text per block."""


_MANY = 512
"""So many checksums fold faster by numpy."""


@dataclass(frozen=True, slots=True)
class FileBlocks:
    """The checksums of one file."""

    file: str
    size_bytes: int
    digest: str
    block_bytes: int
    blocks: Sequence[int]
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
        if not numbers:
            return 0
        start = numbers.start * self.block_bytes
        return min(numbers.stop * self.block_bytes, self.size_bytes) - start

    def folded(self, numbers: range) -> int:
        """The CRC32C of consecutive blocks together."""
        if not numbers:
            return 0
        last = numbers[-1]
        crcs = self.blocks[numbers.start : last]
        fold = _folded if len(crcs) < _MANY else _folded_in_pairs
        folded = fold(crcs, self.block_bytes)
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
            "blocks": np.asarray(self.blocks, dtype=">u4").tobytes().hex(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FileBlocks":
        crcs = np.frombuffer(bytes.fromhex(data["blocks"]), dtype=">u4").astype(np.uint32)
        blocks = array("I", crcs.tobytes())
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
    size_bytes = 0
    for run in sorted(runs, key=lambda run: run.offset):
        if run.offset != size_bytes:
            raise InternalError(
                f"bytes {size_bytes} to {run.offset} were hashed twice or not at all", key=file
            )
        crcs, begun = run.crcs, size_bytes % block_bytes
        if begun and crcs:
            part_bytes = min(block_bytes - begun, run.size_bytes)
            blocks[-1] = combine_crc32c(blocks[-1], crcs[0], part_bytes)
            crcs = crcs[1:]
        blocks += crcs
        size_bytes += run.size_bytes
    found = FileBlocks(file, size_bytes, "", block_bytes, array("I", blocks))
    return replace(found, digest=f"crc32c:{found.folded(range(len(blocks))):08x}")


def crc32c_digest(data: Buffer) -> str:
    """The digest of a run of bytes in a shard file."""
    return f"crc32c:{crc32c(data):08x}"


def sha256_digest(data: Buffer) -> str:
    """The digest of a small object."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _folded(crcs: Sequence[int], block_bytes: int) -> int:
    """The CRC32C of blocks of one size together."""
    folded = 0
    for crc in crcs:
        folded = combine_crc32c(folded, crc, block_bytes)
    return folded


def _folded_in_pairs(crcs: Sequence[int], block_bytes: int) -> int:
    """As :func:`_folded`, for many.

    In pairs, then pairs of pairs: CRC(AB) is the exclusive or of CRC(B) and of CRC(A) moved over as
    many bytes as B has, and moving is linear (zlib's crc32_combine).
    """
    folded = np.asarray(crcs, dtype=np.uint32)
    while len(folded) > 1:
        if len(folded) % 2:
            folded = np.concatenate([np.zeros(1, np.uint32), folded])  # in front nothing weighs
        folded = _moved(folded[::2], block_bytes) ^ folded[1::2]
        block_bytes *= 2
    return int(folded[0]) if len(folded) else 0


def _moved(crcs: NDArray[np.uint32], size_bytes: int) -> NDArray[np.uint32]:
    """What each of ``crcs`` becomes if so many bytes follow, but for their own checksum."""
    tables = _move_tables(size_bytes)
    moved: NDArray[np.uint32] = tables[0][crcs & 0xFF]
    for number in (1, 2, 3):
        moved = moved ^ tables[number][(crcs >> np.uint32(8 * number)) & 0xFF]
    return moved


@lru_cache(maxsize=256)
def _move_tables(size_bytes: int) -> NDArray[np.uint32]:
    """By place of a byte in a checksum and its value: what it adds when the checksum is moved."""
    tables = np.zeros((4, 256), dtype=np.uint32)
    for bit in range(32):
        place, weight = divmod(bit, 8)
        moved = np.uint32(combine_crc32c(1 << bit, 0, size_bytes))
        tables[place, (np.arange(256) >> weight) & 1 == 1] ^= moved
    return tables
