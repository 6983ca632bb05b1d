"""A module's tensors under the names they have without wrappers: torch.compile, DDP, and so on."""

from collections.abc import Container, Mapping
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import _IncompatibleKeys
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from keepstep.errors import ConfigError
from keepstep.state.values import as_one_value

Names = dict[torch.nn.Parameter, str]

_EXTRA_STATE = "_extra_state"

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
            if _is_extra_state(key)
            else value
            for key, value in self._module.state_dict().items()
        }

    def destinations(self, keys: Container[str]) -> dict[str, Any]:
        """The entries of these names, to be loaded into.

        *Raises:* ``ConfigError`` naming one that cannot be.
        """
        chosen = {key: entry for key, entry in self._entries.items() if key in keys}
        for key, entry in chosen.items():
            refuse_meta((self._name, key), entry)
            self._refuse_copy(key)
        return chosen

    def check_in_place(self) -> None:
        """*Raises:* ``ConfigError`` naming an entry that could not be loaded into."""
        for key in self._entries:
            self._refuse_copy(key)

    def _refuse_copy(self, key: str) -> None:
        if key in self._copies:
            raise ConfigError(
                f"state entry {self._name}.{key} is a copy that state_dict() makes, perhaps in a "
                "hook that clones or converts: what is loaded into it would not reach the module. "
                "Track a module whose state_dict() gives parameters and buffers as they are"
            )

    @cached_property
    def _copies(self) -> set[str]:
        """Entries that stand for parameters or buffers without sharing their memory.

        What is there besides all of these, such as the constants of a quantized layer, may be made
        anew each time: the proof of a resume shows whether it came out the same.
        """
        own = self._tensors(is_whole=True)
        memories = {_memory(tensor) for tensor in own.values()}
        found = {
            key: memory
            for key, entry in self._entries.items()
            if isinstance(entry, torch.Tensor) and (memory := _memory(entry))
        }
        saved = {*found.values(), 0}
        lacks_some = any(_memory(t) not in saved for t in self._tensors(is_whole=False).values())
        return {
            key
            for key, memory in found.items()
            if memory not in memories and (lacks_some or key in own)
        }

    def _tensors(self, *, is_whole: bool) -> dict[str, torch.Tensor]:
        """Parameters and buffers by all their names.

        Args:
            is_whole: Whether buffers that are not persistent are among them.
        """
        tensors: dict[str, torch.Tensor] = {}
        for path, part in self._module.named_modules(remove_duplicate=False):
            passing = part._non_persistent_buffers_set  # noqa: SLF001  # has no public name
            tensors |= {
                self._clean(_joined(path, name)): tensor
                for name, tensor in chain(
                    part.named_parameters(recurse=False, remove_duplicate=False),
                    part.named_buffers(recurse=False, remove_duplicate=False),
                )
                if is_whole or name not in passing
            }
        return tensors

    def finish_load(self, loaded: Mapping[str, Any]) -> None:
        """Do what ``load_state_dict`` does beside copying tensors, which were read in place.

        Extra state is handed over, and the module's own hooks for after a load are run.
        """
        self._finish_part("", self._module, loaded)

    def _finish_part(self, path: str, part: torch.nn.Module, loaded: Mapping[str, Any]) -> None:
        key = self._clean(_joined(path, _EXTRA_STATE))
        if key in loaded and type(part).set_extra_state is not torch.nn.Module.set_extra_state:
            part.set_extra_state(loaded[key])
        for name, child in part.named_children():
            self._finish_part(_joined(path, name), child, loaded)
        for hook in part._load_state_dict_post_hooks.values():  # noqa: SLF001  # has no public name
            hook(part, _IncompatibleKeys([], []))

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


def _is_extra_state(key: str) -> bool:
    """Whether a module's entry is what its ``get_extra_state`` returned, of any type."""
    return key.rpartition(".")[2] == _EXTRA_STATE


def refuse_meta(path: tuple[str | int, ...], entry: Any) -> None:
    """*Raises:* ``ConfigError`` if there is no memory to load an entry into."""
    if isinstance(entry, torch.Tensor) and _local(entry).is_meta:
        raise ConfigError(
            f"state entry {'.'.join(map(str, path))} is on the meta device, where nothing can be "
            "loaded into it; give the model memory first, as by to_empty(device=...)"
        )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _memory(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins; 0 if it has none of its own."""
    local = _local(tensor)
    is_plain = local.layout is torch.strided and not is_traceable_wrapper_subclass(local)
    return local.untyped_storage().data_ptr() if is_plain and not local.is_meta else 0


def _wrapped_by(part: torch.nn.Module) -> tuple[str, ...]:
    if isinstance(part, DistributedDataParallel):
        return ("module",)
    return tuple(name for name, _ in part.named_children() if name in _WRAPPED)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
