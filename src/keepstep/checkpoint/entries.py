"""A state dict as a flat list of entries, and the structure of one: what a plan depends on."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from keepstep.checkpoint.frames import dtype_name, has_frames
from keepstep.checkpoint.shards import Path
from keepstep.errors import ConfigError

Entries = dict[str, Any]
Structure = list[Hashable]


def flatten(state_dict: Mapping[str, Any]) -> tuple[Entries, dict[str, Path]]:
    """Entries and their paths by name, which is the path joined by dots; as DCP flattens.

    Mappings are entered, and lists that hold tensors or mappings. *Raises:* ``ConfigError`` if two
    entries have one name.
    """
    entries: Entries = {}
    paths: dict[str, Path] = {}
    for key, value in state_dict.items():
        _visit((str(key),), str(key), value, entries, paths)
    return entries, paths


def structure_of(entries: Entries) -> Structure:
    """Names, shapes, dtypes and layouts: equal as long as a plan remains valid."""
    return [(fqn, *_layout(value)) for fqn, value in entries.items()]


def check_tensors(entries: Entries) -> None:
    """*Raises:* ``ConfigError`` naming a tensor that could not be saved, or not be loaded into."""
    for fqn, entry in entries.items():
        if isinstance(entry, torch.Tensor) and (unusual := _unusual(entry)) is not None:
            kind, remedy = unusual
            raise ConfigError(
                f"state entry {fqn} is a {kind} tensor ({type(entry).__name__}), which cannot be "
                f"saved and restored; {remedy}"
            )


def _unusual(tensor: torch.Tensor) -> tuple[str, str] | None:
    """What a tensor is whose bytes are not plainly its memory's, and what to do."""
    plain = "keep plain tensors in state_dict()"
    if isinstance(tensor, DTensor):
        if any(placement.is_partial() for placement in tensor.placements):
            return "partial", "keep what .full_tensor() returns, which all ranks call together"
        return _unusual(tensor.to_local())
    if tensor.layout is not torch.strided:
        return str(tensor.layout).removeprefix("torch."), plain
    if tensor.is_meta:
        return "meta", plain
    if tensor.is_quantized:
        return "quantized", plain
    if not has_frames(tensor.dtype):
        return f"sub-byte {dtype_name(tensor.dtype)}", "keep its bytes as a tensor of uint8"
    is_wrapper: bool = is_traceable_wrapper_subclass(tensor)  # of tensors; it has no memory itself
    if is_wrapper:
        return "wrapper", plain
    if tensor.is_conj():
        return "conjugated", "keep what .resolve_conj() returns instead of this view"
    if any(
        not stride and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        return "stride-0", "keep what .clone() returns instead of this expanded view"
    return None


def _visit(path: Path, fqn: str, value: Any, entries: Entries, paths: dict[str, Path]) -> None:
    is_leaf = isinstance(value, torch.Tensor)  # asked first: most entries are
    if not is_leaf and isinstance(value, Mapping):
        for key, inner in value.items():
            _visit((*path, str(key)), f"{fqn}.{key}", inner, entries, paths)
    elif not is_leaf and isinstance(value, list) and _holds_tensors_or_mappings(value):
        for number, inner in enumerate(value):
            _visit((*path, number), f"{fqn}.{number}", inner, entries, paths)
    else:
        if fqn in entries:
            raise ConfigError(f"two entries of the state have the name {fqn}: rename one")
        entries[fqn] = value
        paths[fqn] = path


def _holds_tensors_or_mappings(values: list[Any]) -> bool:
    return any(
        isinstance(value, torch.Tensor | Mapping)
        or (isinstance(value, list) and _holds_tensors_or_mappings(value))
        for value in values
    )


def _layout(value: Any) -> tuple[Hashable, ...]:
    if isinstance(value, DTensor):
        return (value.shape, value.dtype, value.placements, value.device_mesh)
    if isinstance(value, torch.Tensor):
        return (value.shape, value.dtype)
    return ()
