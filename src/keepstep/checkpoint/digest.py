"""A 64-bit content digest of tensors that does not depend on sharding or world size.

Each element contributes a mix of its bits, its place in the global tensor and the tensor's
identity; contributions are added modulo 2^64. Addition is commutative, so the chunks of a tensor
may lie on any ranks in any cut: the sum is the same. It proves what checksums cannot, namely that
everything was restored, and to where it belongs. It is not a defense against forgery.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch

_PIECE_ELEMENTS = 1 << 16  # keeps the intermediate values in cache
_PLACE = -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio: splitmix64's increment
_MIX = -4658895280553007687  # 0xBF58476D1CE4E5B9, splitmix64's first multiplier
_MODULUS = 1 << 64
_PREFIX = "sum64:"


def chunk_digest(
    fqn: str, chunk: torch.Tensor, offsets: Sequence[int], global_shape: Sequence[int]
) -> int:
    """The contribution of one chunk, 0 to 2^64-1. An empty chunk contributes 0.

    Args:
        fqn: The tensor's name in the state dict.
        chunk: Any shape, any device, any strides.
        offsets: Of the chunk in the tensor, by dimension.
        global_shape: Of the tensor.
    """
    if chunk.numel() == 0:
        return 0
    bits = _bits(chunk.detach())
    width = bits.numel() // chunk.numel()  # 2 for dtypes of 16 bytes
    places = _Places(chunk.shape, offsets, global_shape, width, bits.device)
    seed = _seed(fqn, chunk.dtype, global_shape)
    total = 0
    for start in range(0, bits.numel(), _PIECE_ELEMENTS):
        piece = bits[start : start + _PIECE_ELEMENTS].to(torch.int64)
        mixed = places.slice(start, piece.numel()).add(seed).mul_(_PLACE).bitwise_xor_(piece)
        mixed.bitwise_xor_(mixed >> 29).mul_(_MIX)
        mixed.bitwise_xor_(mixed >> 32)
        total += int(mixed.sum())
    return total % _MODULUS


def combined(digests: Iterable[int]) -> int:
    """The digest of tensors or chunks together."""
    return sum(digests) % _MODULUS


def format_digest(digest: int) -> str:
    """As manifests and indexes spell it."""
    return f"{_PREFIX}{digest:016x}"


def parse_digest(text: str) -> int:
    """What :func:`format_digest` wrote."""
    return int(text.removeprefix(_PREFIX), 16)


def _bits(chunk: torch.Tensor) -> torch.Tensor:
    """The chunk's elements as integers of the same width, flat."""
    if chunk.dtype.itemsize == 16:
        chunk = torch.view_as_real(chunk)
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[chunk.dtype.itemsize]
    return chunk.contiguous().view(-1).view(integers)


def _seed(fqn: str, dtype: torch.dtype, global_shape: Sequence[int]) -> int:
    identity = f"{fqn}\0{dtype}\0{tuple(global_shape)}".encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:7], "little")


class _Places:
    """Row-major places of a chunk's elements in the global tensor."""

    def __init__(
        self,
        shape: Sequence[int],
        offsets: Sequence[int],
        global_shape: Sequence[int],
        width: int,
        device: torch.device,
    ) -> None:
        self._device = device
        inner = math.prod(global_shape[1:])
        self._first = offsets[0] * inner * width if offsets else 0
        self._explicit: torch.Tensor | None = None
        if tuple(shape[1:]) != tuple(global_shape[1:]):
            self._explicit = _explicit_places(shape, offsets, global_shape, width, device)

    def slice(self, start: int, count: int) -> torch.Tensor:
        if self._explicit is not None:
            return self._explicit[start : start + count]
        first = self._first + start
        return torch.arange(first, first + count, device=self._device)


def _explicit_places(
    shape: Sequence[int],
    offsets: Sequence[int],
    global_shape: Sequence[int],
    width: int,
    device: torch.device,
) -> torch.Tensor:
    """For chunks that are cut in an inner dimension, whose places are not consecutive."""
    places = torch.arange(width, device=device)
    stride = width
    for dimension in reversed(range(len(shape))):
        along = torch.arange(shape[dimension], device=device).add(offsets[dimension]).mul(stride)
        places = (along.unsqueeze(1) + places.unsqueeze(0)).view(-1)
        stride *= global_shape[dimension]
    return places
