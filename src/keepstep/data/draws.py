"""What datasets and transforms draw at random: fixed by the sample, not by who reads it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def draw_seed(seed: int, *place: int) -> int:
    """A seed for what is drawn at a place of the order."""
    text = f"keepstep draw {seed} {' '.join(map(str, place))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "little")


def seed_draws(seed: int) -> None:
    """Seed the host's generators of python, numpy and torch.

    Not by ``torch.manual_seed``, which reaches out for the devices as well.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the global generator is what libraries draw from
    torch.default_generator.manual_seed(seed)


@contextmanager
def own_draws() -> Iterator[None]:
    """Let what is drawn inside leave no trace in the generators of the training loop."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # as above
    host = torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002  # as above
        torch.default_generator.set_state(host)
