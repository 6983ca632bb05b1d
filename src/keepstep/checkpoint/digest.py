"""A 64-bit content digest of tensors that does not depend on sharding or world size.

Think of one endless file of zeros in which every tensor lies, row-major, at a place that is derived
from its name, dtype and shape. The digest is the CRC-64/NVME of that file. A CRC is linear: the
file's is the exclusive or of what each run of bytes contributes by itself, whoever holds it and in
whatever order. So the digest of any set of chunks, on any ranks in any cut, is the exclusive or of
their digests. It proves what block checksums cannot, namely that everything was restored, and to
where it belongs. It is not a defense against forgery.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import xor

import numpy as np
import torch
from awscrt.checksums import combine_crc64nvme, crc64nvme

from keepstep.checkpoint.host_memory import host_pieces
from keepstep.storage.base import Buffer

_ONES = (1 << 64) - 1
_PREFIX = "crc64:"
_PLACE_BYTES = 6  # places are up to 2^48: far apart, and within what a CRC can be shifted by

_NARROW_BYTES = 512
_SPAN_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where the bytes of one chunk lie in the file that the digest is of.

    A chunk's bytes are *runs* that follow each other in the tensor: a single one if the chunk is
    cut along its outermost dimension alone.
    """

    after: int
    """Bytes from the chunk's first byte to the end of the file."""
    chunk_bytes: int
    run_bytes: int
    shape: tuple[int, ...]
    """Of the chunk."""
    strides: tuple[int, ...]
    """Bytes in the tensor between neighbors, by dimension."""
    itemsize: int

    @classmethod
    def of(
        cls,
        fqn: str,
        dtype: torch.dtype,
        shape: Sequence[int],
        offsets: Sequence[int],
        global_shape: Sequence[int],
    ) -> "ChunkPlace":
        """The place of a chunk of ``shape`` at ``offsets`` of a tensor of ``global_shape``."""
        itemsize = dtype.itemsize
        strides = _strides(global_shape, itemsize)
        before = sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))
        whole = math.prod(global_shape) * itemsize + _distance(fqn, dtype, tuple(global_shape))
        inner = len(shape) - 1
        while inner > 0 and shape[inner] == global_shape[inner]:
            inner -= 1
        return cls(
            after=whole - before,
            chunk_bytes=math.prod(shape) * itemsize,
            run_bytes=math.prod(shape[max(inner, 0) :]) * itemsize,
            shape=tuple(shape),
            strides=strides,
            itemsize=itemsize,
        )

    def digest(self, start: int, data: memoryview) -> int:
        """What ``data``, the chunk's bytes from byte ``start`` on, contributes."""
        if self.run_bytes == self.chunk_bytes:
            return _shifted(_linear_crc(data), self.after - start - len(data))
        first = start // self.run_bytes
        runs = np.arange(first, -(-(start + len(data)) // self.run_bytes))
        starts = self._run_starts(runs)
        if self.run_bytes < _NARROW_BYTES:
            return self._narrow_digest(starts, start - first * self.run_bytes, data)
        total, position, within = 0, 0, start - first * self.run_bytes
        for run_start in starts.tolist():
            piece = data[position : position + self.run_bytes - within]
            total ^= _shifted(_linear_crc(piece), self.after - run_start - within - len(piece))
            position, within = position + len(piece), 0
        return total

    def _narrow_digest(self, starts: np.ndarray, within: int, data: memoryview) -> int:
        """Short runs, spread out as they lie in the tensor, with zeros between them."""
        runs = np.zeros((len(starts), self.run_bytes), dtype=np.uint8)
        runs.reshape(-1)[within : within + len(data)] = np.frombuffer(data, dtype=np.uint8)
        total = 0
        for low, high in _spans(starts, self.run_bytes):
            span_bytes = int(starts[high - 1] - starts[low]) + self.run_bytes
            spread = np.zeros(span_bytes, dtype=np.uint8)
            places = (starts[low:high] - starts[low])[:, None] + np.arange(self.run_bytes)
            spread[places] = runs[low:high]
            crc = _linear_crc(spread.data)
            total ^= _shifted(crc, self.after - int(starts[low]) - span_bytes)
        return total

    def _run_starts(self, runs: np.ndarray) -> np.ndarray:
        """Bytes from the chunk's first byte to each run's first, in the tensor."""
        within = runs * self.run_bytes
        starts = np.zeros_like(within)
        chunk_strides = _strides(self.shape, self.itemsize)
        for size, stride, chunk_stride in zip(self.shape, self.strides, chunk_strides, strict=True):
            starts += within // chunk_stride % size * stride
        return starts


def chunk_digest(
    fqn: str, chunk: torch.Tensor, offsets: Sequence[int], global_shape: Sequence[int]
) -> int:
    """The digest of one chunk, 0 to 2^64-1; of an empty one 0.

    Args:
        fqn: The tensor's name in the state dict.
        chunk: Any shape, dtype, device and strides; host memory of 8 MiB is enough for any size.
        offsets: Of the chunk in the tensor, by dimension.
        global_shape: Of the tensor.
    """
    if chunk.numel() == 0:
        return 0
    place = ChunkPlace.of(fqn, chunk.dtype, chunk.shape, offsets, global_shape)
    return combined(place.digest(start, data) for start, data in host_pieces(chunk.detach()))


def combined(digests: Iterable[int]) -> int:
    """The digest of tensors or chunks together."""
    return reduce(xor, digests, 0)


def format_digest(digest: int) -> str:
    """As manifests and indexes spell it."""
    return f"{_PREFIX}{digest:016x}"


def parse_digest(text: str) -> int:
    """What :func:`format_digest` wrote."""
    return int(text.removeprefix(_PREFIX), 16)


def _linear_crc(data: Buffer) -> int:
    """CRC-64/NVME with its register starting at zero: zeros in front change nothing."""
    return int(crc64nvme(data, _ONES)) ^ _ONES


def _shifted(crc: int, zeros: int) -> int:
    """The CRC of the same bytes with ``zeros`` zero bytes behind them."""
    return int(combine_crc64nvme(crc, 0, zeros))


def _distance(fqn: str, dtype: torch.dtype, global_shape: tuple[int, ...]) -> int:
    """From the tensor's last byte to the end of the file."""
    identity = f"{fqn}\0{dtype}\0{global_shape}".encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:_PLACE_BYTES], "little")


def _strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Row-major, in bytes."""
    strides, stride = [], itemsize
    for size in reversed(shape):
        strides.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(strides))


def _spans(starts: np.ndarray, run_bytes: int) -> Iterator[tuple[int, int]]:
    """Groups of neighboring runs that together span a bounded part of the tensor."""
    low = 0
    while low < len(starts):
        limit = starts[low] + max(_SPAN_BYTES, run_bytes)
        high = max(low + 1, int(np.searchsorted(starts, limit - run_bytes, side="right")))
        yield low, high
        low = high
