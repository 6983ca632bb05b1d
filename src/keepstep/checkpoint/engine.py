"""Loading: from a checkpoint into the tracked objects, whole or not at all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.storage import StorageReader
from torch.distributed.tensor import DTensor

from keepstep.checkpoint.collector import collector_paused
from keepstep.checkpoint.digest import chunk_digest, combined, format_digest, parse_digest
from keepstep.checkpoint.fit import Comparable, Fit
from keepstep.checkpoint.planned import PlannedLoad
from keepstep.commit.index import Frame
from keepstep.errors import InternalError

Path = tuple[str | int, ...]
TensorSpec = tuple[tuple[int, ...], torch.dtype]

LivePart = tuple[tuple[int, ...] | None, int]
"""Offsets of what a rank holds of a tensor, ``None`` if it is no ``DTensor``; its digest."""
LiveDigests = Mapping[str, LivePart]
"""By saved name."""

_NO_TENSOR = ((), torch.float32)


class Loadable(Comparable, Protocol):
    """What loading needs of the tracked objects; ``state.AppState`` is one."""

    def template(self, contents: Mapping[Path, TensorSpec | None], *, with_rng: bool) -> Any: ...

    def load_dict(self, loaded: Mapping[str, Any]) -> None: ...


def load_state(
    reader: StorageReader, state: Loadable, fit: Fit, *, with_rng: bool
) -> dict[str, Any]:
    """Read what fits into the tracked objects; returns everything that was read.

    *Ranks:* local; sharded tensors read their own shards.
    *Raises:* ``CorruptCheckpointError`` naming file and block, ``StorageError``: the tracked
    objects are then partly overwritten, and another checkpoint has to be loaded whole.
    """
    planned = plan_load(reader, state, fit, with_rng=with_rng)
    planned.read()
    finish_load(planned, state, fit)
    return planned.template


def plan_load(reader: StorageReader, state: Loadable, fit: Fit, *, with_rng: bool) -> PlannedLoad:
    """The first part of :func:`load_state`; nothing is read or changed yet.

    *Ranks:* local. *Raises:* ``ConfigError`` naming what cannot be loaded into.
    """
    with collector_paused():
        contents = fit.contents
        template: dict[str, Any] = state.template(contents, with_rng=with_rng)
        for path in filter(_is_of_module, fit.casts):
            (name, key), (_, dtype) = map(str, path), contents[path] or _NO_TENSOR
            template[name][key] = torch.empty_like(template[name][key], dtype=dtype)
    return PlannedLoad.of(template, reader, fit.metadata)


def finish_load(planned: PlannedLoad, state: Loadable, fit: Fit) -> None:
    """The last part: hand over what was not read into place. *Ranks:* local."""
    loaded = planned.template
    if fit.casts:
        converted = {path: fit.contents[path] for path in fit.casts if _is_of_module(path)}
        _convert(loaded, state.template(converted, with_rng=False), fit)
    for name in {optimizer for optimizer, _ in fit.parameters}:
        for group in loaded[name].get("param_groups", []):
            group["params"] = [fit.parameters.get((name, fqn), fqn) for fqn in group["params"]]
    state.load_dict(loaded)


def _convert(loaded: dict[str, Any], live: Mapping[str, Any], fit: Fit) -> None:
    """Give what was read the dtype it is to have, a module's tensors in place."""
    for path, dtype in fit.casts.items():
        name, *inner, key = map(str, path)
        if _is_of_module(path):
            with torch.no_grad():
                live[name][key].copy_(loaded[name][key])
            loaded[name][key] = live[name][key]
        else:
            state = loaded[name]["state"][inner[1]]
            state[key] = state[key].to(dtype)


def live_digests(state_dict: Mapping[str, Any], fit: Fit) -> LiveDigests:
    """Where this rank's part of every tensor that was to be loaded begins, and its digest.

    *Ranks:* local.
    """
    return {fqn: _live_digest(fqn, tensor) for fqn, tensor in _loaded(state_dict, fit)}


def check_digests(
    frames: Iterable[Frame],
    live: Sequence[LiveDigests],
    fit: Fit,
    *,
    is_common: Callable[[str], bool],
) -> str:
    """Compare what was saved with what every rank now holds; the state digest of that.

    Args:
        frames: Of the whole checkpoint.
        live: :func:`live_digests` of every rank.
        is_common: Whether an entry belongs to the state that all ranks share.

    *Raises:* ``InternalError`` naming the first tensor that was not restored, and the ranks if
    they hold the same part of it with different content.
    """
    saved: dict[str, int] = {}
    wanted = None if fit.saved_names is None else set(fit.saved_names.values())
    cast = _cast_names(fit)
    for frame in frames:
        is_wanted = (wanted is None or frame.fqn in wanted) and frame.fqn not in cast
        if frame.kind == "tensor" and is_common(frame.fqn) and is_wanted:
            saved[frame.fqn] = combined((saved.get(frame.fqn, 0), parse_digest(frame.digest)))
    total = 0
    for fqn in sorted(saved.keys() | live[0].keys()):
        if any(fqn not in digests for digests in live) or fqn not in saved:
            raise _not_restored(fqn, "its content differs from what was saved")
        whole = _whole_digest(fqn, [digests[fqn] for digests in live])
        if whole != saved[fqn]:
            raise _not_restored(fqn, "its content differs from what was saved")
        total = combined((total, whole))
    return format_digest(total)


def _whole_digest(fqn: str, parts: Sequence[LivePart]) -> int:
    """The digest of a tensor of which every rank holds a part, several perhaps the same one."""
    first: dict[tuple[int, ...] | None, tuple[int, int]] = {}
    for rank, (offsets, digest) in enumerate(parts):
        holder, expected = first.setdefault(offsets, (rank, digest))
        if digest != expected:
            part = "it" if offsets is None else f"its part at {list(offsets)}"
            raise _not_restored(fqn, f"ranks {holder} and {rank} hold {part} with other content")
    return combined(digest for _, digest in first.values())


def _not_restored(fqn: str, how: str) -> InternalError:
    return InternalError(
        f"{fqn} was not restored: {how} although every block was read correctly. This is a bug of "
        "keepstep, or of an object's load_state_dict()"
    )


def _loaded(state_dict: Mapping[str, Any], fit: Fit) -> Iterable[tuple[str, torch.Tensor]]:
    """The tensors that were to be loaded as they are, by saved name."""
    names, cast = fit.saved_names, _cast_names(fit)
    for fqn, tensor in _named_tensors((), state_dict):
        saved = fqn if names is None else names.get(fqn)
        if saved is not None and saved not in cast:
            yield saved, tensor


def _cast_names(fit: Fit) -> set[str]:
    """What has other bits now than it was saved with, by saved name."""
    cast = {".".join(map(str, path)) for path in fit.casts}
    return {fit.saved_names[fqn] for fqn in cast} if fit.saved_names is not None else cast


def _named_tensors(path: Path, value: Any) -> Iterable[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield ".".join(map(str, path)), value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_tensors((*path, str(key)), item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _named_tensors((*path, number), item)


def _live_digest(fqn: str, tensor: torch.Tensor) -> LivePart:
    if not isinstance(tensor, DTensor):
        return None, chunk_digest(fqn, tensor, [0] * tensor.dim(), tensor.shape)
    local = tensor.to_local()
    if local.numel() == 0:
        return tuple(tensor.shape), 0  # where no part begins that has content
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(chunk.offsets), chunk_digest(fqn, local, chunk.offsets, tensor.shape)


def _is_of_module(path: Path) -> bool:
    return len(path) == 2
