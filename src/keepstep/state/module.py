"""A module's tensors under the names they have without wrappers: torch.compile, DDP, and so on."""

from functools import cached_property
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from keepstep.state.values import as_one_value

Names = dict[torch.nn.Parameter, str]

_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
"""Where torch.compile and activation checkpointing keep the module they wrap."""


class NamedModule:
    """A module as it stands now: make a new one for each use.

    Names are those of torch's ``get_model_state_dict``, which looks up every one attribute by
    attribute, and takes longer over it than over anything else in a save.
    """

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self._name = name
        self._module = module
        self._wrapped: set[str] = set()
        for path, part in module.named_modules():
            if isinstance(part, FSDPModule):
                # After a forward without backward a root holds other, unsharded parameters.
                part.reshard()
            self._wrapped.update(_joined(path, inner) for inner in _wrapped_by(part))

    def state_dict(self) -> dict[str, Any]:
        """Parameters, buffers and extra state by name. Tensors share memory with the live ones."""
        return dict(self._entries)

    @cached_property
    def _entries(self) -> dict[str, Any]:
        return {
            self._clean(key): as_one_value(f"{self._name}.{key}", value)
            if is_extra_state(key)
            else value
            for key, value in self._module.state_dict().items()
        }

    def parameter_names(self) -> Names:
        """Name of every parameter; of several, a tied parameter's first."""
        return {p: self._clean(name) for name, p in self._module.named_parameters()}

    def buffer_names(self) -> set[str]:
        """Names of all buffers, whether they are in the state dict or not."""
        buffers = self._module.named_buffers(remove_duplicate=False)
        return {self._clean(name) for name, _ in buffers}

    def _clean(self, name: str) -> str:
        """The name without the parts that stand for wrappers."""
        if not self._wrapped:
            return name
        kept: list[str] = []
        path = ""
        for part in name.split("."):
            path = _joined(path, part)
            if path not in self._wrapped:
                kept.append(part)
        return ".".join(kept)


def is_extra_state(key: str) -> bool:
    """Whether a module's entry is what its ``get_extra_state`` returned, of any type."""
    return key.rpartition(".")[2] == "_extra_state"


def _wrapped_by(part: torch.nn.Module) -> tuple[str, ...]:
    if isinstance(part, DistributedDataParallel):
        return ("module",)
    return tuple(name for name, _ in part.named_children() if name in _WRAPPED)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
