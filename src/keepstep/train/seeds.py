"""Seeds of the random generators."""

import random
from hashlib import blake2b

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the generators of python, numpy and torch, on every device.

    *Ranks:* local.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the global generator is what libraries draw from
    torch.manual_seed(seed)


def rank_seed(seed: int, rank: int) -> int:
    """A seed for one rank. Hashed: ``seed + rank`` would be another run's seed on another rank."""
    digest = blake2b(f"keepstep rank {seed} {rank}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
