"""The global order of samples: a pure function of seed and position.

Position ``p`` counts samples over all epochs: epoch ``p // n``, place ``p % n`` inside. Each epoch
is a keyed permutation of ``range(n)``: a Feistel network with cycle walking (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002). So any position is found in constant time
and no permutation is ever stored.

The order is part of what a checkpoint promises: it must never change.
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from keepstep.errors import ConfigError

_ROUNDS = 8


def sample_ids(*, seed: int, num_samples: int, position: int, count: int) -> NDArray[np.int64]:
    """The ids at positions ``position .. position + count``, in order; they may cross epochs.

    Every epoch holds each id of ``range(num_samples)`` exactly once. Nothing is padded or dropped.
    """
    if num_samples < 1:
        raise ConfigError(f"the data set holds {num_samples} samples: at least 1 is needed")
    pieces = []
    end = position + count
    while position < end:
        epoch, place = divmod(position, num_samples)
        length = min(end - position, num_samples - place)
        places = np.arange(place, place + length, dtype=np.uint64)
        pieces.append(permute(places, num_samples, _epoch_key(seed, epoch)))
        position += length
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


def permute(places: NDArray[np.uint64], size: int, key: int) -> NDArray[np.int64]:
    """Where a keyed permutation of ``range(size)`` sends each of ``places``."""
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    round_keys = _mix(np.uint64(key) ^ np.arange(1, _ROUNDS + 1, dtype=np.uint64))
    images = _feistel(places, half_bits, round_keys)
    # Cycle walking: whoever left range(size) goes on until it is back. The network's domain is less
    # than 4 * size (plus a constant), so a walk takes few steps.
    outside = images >= size
    while outside.any():
        images[outside] = _feistel(images[outside], half_bits, round_keys)
        outside = images >= size
    return images.astype(np.int64)


def _epoch_key(seed: int, epoch: int) -> int:
    digest = blake2b(f"keepstep order {seed} {epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _feistel(
    values: NDArray[np.uint64], half_bits: np.uint64, round_keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A permutation of ``range(4 ** half_bits)``, whatever the round function."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << half_bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea, Flood, 2014); arithmetic is modulo 2**64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
