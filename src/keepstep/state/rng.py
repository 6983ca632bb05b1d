"""The random generators of one process: python, numpy, torch on the host and on its device."""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from keepstep.errors import ConfigError


def rng_state_dict() -> dict[str, Any]:
    """Everything needed to continue the generators' streams. *Ranks:* local."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  # the global one
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_rng_state_dict(state: dict[str, Any]) -> None:
    """Continue the streams. *Ranks:* local.

    State of a device that is not here is left out: a host has nothing to put it into.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002  # the global one
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.init()  # a seed that waits for the device to be used would come after this
        torch.cuda.set_rng_state(state["cuda"])


def check_current_device(name: str, tensors: Iterable[torch.Tensor]) -> None:
    """Of all CUDA devices, only the current one's generator is saved: tensors must be there.

    *Ranks:* local. *Raises:* ``ConfigError`` naming both devices.
    """
    for device in {tensor.device for tensor in tensors if tensor.device.type == "cuda"}:
        if device.index != (current := torch.cuda.current_device()):
            raise ConfigError(
                f"{name!r} has tensors on {device}, but the current device is cuda:{current}, "
                "whose random generator is the one that is saved. Call "
                f"torch.cuda.set_device({device.index}) at the start of this rank; one process "
                "uses one device"
            )


def derive_rng(*, seed: int, rank: int, step: int) -> None:
    """Start new streams that depend on the seed, the rank and the step alone. *Ranks:* local.

    For a resume at another world size, where the saved streams belong to ranks that may not exist.
    """
    sequence = np.random.SeedSequence([seed & (2**64 - 1), rank, step])
    python, numpy, torch_ = (int(word) for word in sequence.generate_state(3, np.uint32))
    random.seed(python)
    np.random.seed(numpy)  # noqa: NPY002  # the global one
    torch.manual_seed(torch_)
