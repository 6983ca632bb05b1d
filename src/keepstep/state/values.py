"""State that is kept whole, as one value of a checkpoint."""

import copy
import io
from typing import Any

import torch

from keepstep.errors import ConfigError


def as_one_value(name: str, content: Any) -> io.BytesIO:
    """A state dict serialized whole: stored entry by entry, its keys would all become strings.

    Tensors are stored as host tensors, so that a value loads where there is no such device.

    *Raises:* ``ConfigError`` naming content that cannot be stored.
    """
    buffer = io.BytesIO()
    try:
        torch.save(on_host(content), buffer)
    except Exception as error:  # pickle raises nearly anything; all of it means the same here
        raise ConfigError(f"the state_dict() of {name!r} cannot be stored: {error}") from error
    return buffer


def on_host(value: Any) -> Any:
    """The same dicts, lists and tuples, by type, with every tensor in them on the host."""
    if isinstance(value, torch.Tensor):
        return value if value.device.type == "cpu" else value.detach().cpu()
    if isinstance(value, dict):
        copied = copy.copy(value)  # with what its class and attributes add
        for key, item in value.items():
            copied[key] = on_host(item)
        return copied
    if type(value) is list:
        return [on_host(item) for item in value]
    if type(value) is tuple:
        return tuple(on_host(item) for item in value)
    return value
