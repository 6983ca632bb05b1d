"""Names of parameters as they are in a model's state dict: without what wrappers add to them."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.nn.parallel import DistributedDataParallel

Names = dict[torch.nn.Parameter, str]

_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module"}
"""Where torch.compile and activation checkpointing keep the module they wrap."""


def parameter_names(module: torch.nn.Module) -> Names:
    """The names that ``get_model_state_dict`` gives; of several, a tied parameter's first."""
    names: Names = {}
    for prefix, part in _parts(module):
        for name, parameter in part.named_parameters(recurse=False):
            names.setdefault(parameter, prefix + name)
    return names


def buffer_names(module: torch.nn.Module) -> set[str]:
    """The names of a module's buffers in its state dict."""
    return {
        prefix + name
        for prefix, part in _parts(module)
        for name, _ in part.named_buffers(recurse=False)
    }


def names_for(held: Sequence[torch.nn.Parameter], by_module: Mapping[str, Names]) -> Names:
    """The names that an optimizer uses, which modules it has nothing to do with never change.

    Those within the module that has all its parameters; if there is none, with the module's name
    in front.

    Args:
        held: The optimizer's parameters.
        by_module: Names of the parameters of every tracked module.
    """
    for names in by_module.values():
        if all(parameter in names for parameter in held):
            return names
    prefixed: Names = {}
    for module, names in by_module.items():
        for parameter, name in names.items():
            prefixed.setdefault(parameter, f"{module}.{name}")
    return prefixed


def _parts(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every part of a module, with what stands before the names of its own tensors."""
    parts: dict[str, torch.nn.Module] = {}
    prefixes = {"": ""}
    for path, part in module.named_modules():
        parts[path] = part
        if path:
            parent, _, last = path.rpartition(".")
            is_wrapped = _is_wrapped(parts[parent], last)
            prefixes[path] = prefixes[parent] + ("" if is_wrapped else f"{last}.")
        yield prefixes[path], part


def _is_wrapped(wrapper: torch.nn.Module, name: str) -> bool:
    is_ddp = isinstance(wrapper, DistributedDataParallel)
    return name in _WRAPPED or (is_ddp and name == "module")
