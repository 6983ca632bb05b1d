"""Checksums: CRC32C over fixed blocks of a file, and digests of whole objects.

A digest is written ``<algorithm>:<hex>``. Shard files carry ``crc32c``, which folds out of the
checksums of their blocks, so that any byte range can be verified by itself and the file as a whole
without another pass. Small objects carry ``sha256``. CRC32C finds every error that disks and
networks make up to its 2^-32; it is no defense against someone who forges data on purpose.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from awscrt.checksums import combine_crc32c, crc32c

from keepstep.errors import InternalError
from keepstep.storage.base import Buffer

BLOCK_BYTES = 1 << 20


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

    def block_is_good(self, number: int, data: Buffer) -> bool:
        """Whether ``data`` is block ``number``, by length and checksum."""
        return len(data) == self.block_size(number) and crc32c(data) == self.blocks[number]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "bytes": self.size_bytes,
            "digest": self.digest,
            "block_bytes": self.block_bytes,
            "blocks": [f"{block:08x}" for block in self.blocks],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FileBlocks":
        blocks = tuple(int(block, 16) for block in data["blocks"])
        found = cls(data["file"], data["bytes"], data["digest"], data["block_bytes"], blocks)
        if found.digest != found._folded_digest():
            msg = "the file's digest is not what its blocks fold to"
            raise InternalError(msg, key=found.file)
        return found

    def _folded_digest(self) -> str:
        folded = 0
        for number, block in enumerate(self.blocks):
            folded = combine_crc32c(folded, block, self.block_size(number))
        return f"crc32c:{folded:08x}"


class BlockHasher:
    """Computes the block checksums of a file from its bytes in order, in any pieces. No copies."""

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._size_bytes = 0
        self._blocks: list[int] = []
        self._current = 0
        self._whole = 0

    @property
    def size_bytes(self) -> int:
        """Bytes seen so far."""
        return self._size_bytes

    def update(self, data: Buffer) -> None:
        """Take the next bytes of the file."""
        view = memoryview(data).cast("B")
        while view:
            room = self._block_bytes - self._size_bytes % self._block_bytes
            piece, view = view[:room], view[room:]
            self._current = crc32c(piece, self._current)
            self._size_bytes += len(piece)
            if len(piece) == room:
                self._end_block(self._block_bytes)

    def finish(self, file: str) -> FileBlocks:
        """The checksums of everything seen; the hasher is used up."""
        if rest := self._size_bytes % self._block_bytes:
            self._end_block(rest)
        digest = f"crc32c:{self._whole:08x}"
        return FileBlocks(file, self._size_bytes, digest, self._block_bytes, tuple(self._blocks))

    def _end_block(self, block_bytes: int) -> None:
        self._blocks.append(self._current)
        self._whole = combine_crc32c(self._whole, self._current, block_bytes)
        self._current = 0


def sha256_digest(data: Buffer) -> str:
    """The digest of a small object."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
