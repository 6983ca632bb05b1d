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


def slot_seed(seed: int, step: int, slot: int) -> int:
    """A seed for one slot of one step, wherever it runs and whatever ran there before."""
    return _hashed(f"slot {seed} {step} {slot}")


def step_seed(seed: int, step: int) -> int:
    """A seed for what all ranks draw alike once the slots of a step are done."""
    return _hashed(f"step {seed} {step}")


def rank_seed(seed: int, rank: int) -> int:
    """A seed for one rank. Hashed: ``seed + rank`` would be another run's seed on another rank."""
    return _hashed(f"rank {seed} {rank}")


def _hashed(text: str) -> int:
    digest = blake2b(f"keepstep {text}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
