"""What one rank wrote: the frames in its files and the checksums of their blocks.

A *frame* is one chunk of a tensor, or one serialized value, as stock DCP stores it: a file in the
format of ``torch.save`` inside the shard file. The index says where the chunk's own bytes lie, so
that listing, verifying and range reads need neither torch nor pickle.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from keepstep.commit.blocks import FileBlocks
from keepstep.commit.canonical import compact_bytes, seal_parts, unseal
from keepstep.errors import CorruptCheckpointError, InternalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One chunk of a tensor, or one value."""

    fqn: str
    path: tuple[str | int, ...]
    """Where the entry sits in the nested state dict; ``fqn`` is this, joined by dots."""
    kind: Literal["tensor", "value"]
    file: str
    offset: int
    """Bytes from the start of the file to the frame."""
    length: int
    data_offset: int
    """Bytes from the start of the file to the chunk's own bytes."""
    data_bytes: int
    digest: str
    """Of the content: 64 bits, additive over the chunks of a tensor (see checkpoint/digest.py);
    for a value CRC32C of its bytes."""
    dtype: str | None = None
    """As ``torch`` names it, without the module: ``bfloat16``."""
    global_shape: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()
    """Of this chunk in the tensor, by dimension."""
    shape: tuple[int, ...] = ()
    """Of this chunk."""

    def to_json(self) -> dict[str, Any]:
        common: dict[str, Any] = {
            "fqn": self.fqn,
            "path": list(self.path),
            "kind": self.kind,
            "file": self.file,
            "offset": self.offset,
            "length": self.length,
            "data_offset": self.data_offset,
            "data_bytes": self.data_bytes,
            "digest": self.digest,
        }
        if self.kind == "value":
            return common
        shapes: dict[str, Any] = {
            "global_shape": list(self.global_shape),
            "offsets": list(self.offsets),
            "shape": list(self.shape),
        }
        return {**common, "dtype": self.dtype, **shapes}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Frame":
        tuples: dict[str, Any] = {
            name: tuple(data[name])
            for name in ("path", "global_shape", "offsets", "shape")
            if name in data
        }
        return cls(**{**data, **tuples})


@dataclass(frozen=True, slots=True, kw_only=True)
class RankIndex:
    """Everything one rank wrote for one attempt."""

    rank: int
    frames: tuple[Frame, ...]
    files: tuple[FileBlocks, ...]

    def __post_init__(self) -> None:
        sizes = {blocks.file: blocks.size_bytes for blocks in self.files}
        for frame in self.frames:
            end = frame.offset + frame.length
            is_inside = (
                frame.offset <= frame.data_offset and frame.data_offset + frame.data_bytes <= end
            )
            if not is_inside or end > sizes.get(frame.file, -1):
                msg = f"frame {frame.fqn} lies outside its file"
                raise InternalError(msg, key=frame.file, rank=self.rank)

    def to_bytes(self) -> bytes:
        return encode_index(self.rank, map(encode_frame, self.frames), self.files)

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> "RankIndex":
        """The index, checked. *Raises:* ``CorruptCheckpointError``, ``UnsupportedFormatError``."""
        document = unseal(data, key)
        try:
            return cls(
                rank=document["rank"],
                frames=tuple(Frame.from_json(frame) for frame in document["frames"]),
                files=tuple(FileBlocks.from_json(blocks) for blocks in document["files"]),
            )
        except (KeyError, TypeError, ValueError, InternalError) as error:
            raise CorruptCheckpointError(f"{key} is not an index: {error}", key=key) from error


def encode_index(rank: int, frames: Iterable[bytes], files: Iterable[FileBlocks]) -> bytes:
    """An index as a document, from frames as :func:`encode_frame` makes them.

    The same bytes as ``seal`` would give for the whole, but frames that did not change need not be
    encoded again.
    """
    return seal_parts(
        {
            "files": compact_bytes([blocks.to_json() for blocks in files]),
            "frames": b"[" + b",".join(frames) + b"]",
            "rank": compact_bytes(rank),
        }
    )


def encode_frame(frame: Frame) -> bytes:
    """One frame in an index."""
    return compact_bytes(frame.to_json())


def frame_template(frame: Frame) -> tuple[bytes, bytes]:
    """What stands before and after the digest in :func:`encode_frame`; the frame's is ignored."""
    before, _, after = encode_frame(replace(frame, digest=_PLACEHOLDER)).partition(
        _PLACEHOLDER.encode()
    )
    return before, after


_PLACEHOLDER = "digest:goes:here"
