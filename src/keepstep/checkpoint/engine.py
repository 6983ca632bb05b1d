"""Loading: from a checkpoint into the tracked objects, whole or not at all."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import StorageReader
from torch.distributed.tensor import DTensor, Replicate

from keepstep.checkpoint.collector import collector_paused
from keepstep.checkpoint.digest import chunk_digest, combined, format_digest, parse_digest
from keepstep.checkpoint.mismatch import check_fits
from keepstep.checkpoint.planned import PlannedLoad
from keepstep.commit.index import Frame
from keepstep.errors import InternalError

Path = tuple[str | int, ...]
TensorSpec = tuple[tuple[int, ...], torch.dtype]


class Loadable(Protocol):
    """What loading needs of the tracked objects; ``state.AppState`` is one."""

    def expected(self) -> dict[Path, TensorSpec | None]: ...

    def optimizer_groups(self) -> dict[str, list[frozenset[str]]]: ...

    def optimizer_options(self) -> dict[str, frozenset[str]]: ...

    def tracks(self, name: str) -> bool: ...

    def accepted(self, present: Mapping[Path, TensorSpec | None]) -> set[Path]: ...

    def template(
        self, tensors: Mapping[Path, TensorSpec], values: Iterable[Path], *, with_rng: bool
    ) -> dict[str, Any]: ...

    def load_dict(self, loaded: Mapping[str, Any]) -> None: ...


def check_state_fits(
    reader: StorageReader, state: Loadable, *, where: str, is_partial: bool = False
) -> None:
    """Compare a checkpoint with the tracked objects. Nothing is changed.

    Args:
        where: The checkpoint, for the message.
        is_partial: Leave out what was saved of objects that are not tracked.

    *Ranks:* local. *Raises:* ``StateMismatchError`` with a table of every difference.
    """
    metadata = reader.read_metadata()
    tensors, values = _contents(metadata)
    present: dict[Path, TensorSpec | None] = {
        path: spec
        for path, spec in {**tensors, **dict.fromkeys(values)}.items()
        if not is_partial or state.tracks(str(path[0]))
    }
    saved_groups = _saved_groups(reader, values, state.optimizer_groups().keys())
    check_fits(
        expected=state.expected(),
        present=present,
        accepted=state.accepted(present),
        expected_groups=state.optimizer_groups(),
        saved_groups=saved_groups,
        expected_options=state.optimizer_options(),
        where=where,
    )


def load_state(reader: StorageReader, state: Loadable, *, with_rng: bool) -> dict[str, Any]:
    """Read a checkpoint that fits into the tracked objects; returns everything that was read.

    *Ranks:* local; sharded tensors read their own shards.
    *Raises:* ``CorruptCheckpointError`` naming file and block, ``StorageError``: the tracked
    objects are then partly overwritten, and another checkpoint has to be loaded whole.
    """
    planned = plan_load(reader, state, with_rng=with_rng)
    planned.read()
    state.load_dict(planned.template)
    return planned.template


def plan_load(reader: StorageReader, state: Loadable, *, with_rng: bool) -> PlannedLoad:
    """The first half of :func:`load_state`; nothing is read or changed yet. *Ranks:* local."""
    with collector_paused():
        tensors, values = _contents(reader.read_metadata())
        template = state.template(tensors, values, with_rng=with_rng)
    return PlannedLoad.of(template, reader)


def live_digests(state_dict: Mapping[str, Any]) -> dict[str, int]:
    """Content digest of every tensor in a nested state dict, by name.

    *Ranks:* local. A tensor that is not sharded contributes its whole digest on every rank, a shard
    its own part; a replica of a shard contributes nothing.
    """
    return {fqn: _live_digest(fqn, tensor) for fqn, tensor in _named_tensors((), state_dict)}


def check_digests(
    frames: Iterable[Frame],
    live: list[Mapping[str, int]],
    *,
    is_sharded: Callable[[str], bool],
    is_common: Callable[[str], bool],
) -> str:
    """Compare what was saved with what every rank now holds; the state digest of that.

    Args:
        frames: Of the whole checkpoint.
        live: :func:`live_digests` of every rank.
        is_sharded: Whether a tensor, by name, is in shards on the ranks.
        is_common: Whether an entry belongs to the state that all ranks share.

    *Raises:* ``InternalError`` naming the first tensor that was not restored.
    """
    saved: dict[str, int] = {}
    for frame in frames:
        if frame.kind == "tensor" and is_common(frame.fqn):
            saved[frame.fqn] = combined((saved.get(frame.fqn, 0), parse_digest(frame.digest)))
    total = 0
    for fqn in sorted(saved.keys() | live[0].keys()):
        parts = [digests.get(fqn) for digests in live]
        known = [part for part in parts if part is not None]
        whole = [combined(known)] if is_sharded(fqn) else known
        if len(known) != len(parts) or any(digest != saved.get(fqn) for digest in whole):
            raise InternalError(
                f"{fqn} was not restored: its content differs from what was saved although every "
                "block was read correctly. This is a bug of keepstep, or of an object's "
                "load_state_dict()"
            )
        total = combined((total, whole[0]))
    return format_digest(total)


def is_sharded(state_dict: Mapping[str, Any]) -> Callable[[str], bool]:
    """Tells by name which tensors of a nested state dict are in shards."""
    sharded = {fqn for fqn, t in _named_tensors((), state_dict) if isinstance(t, DTensor)}
    return sharded.__contains__


def _contents(metadata: Metadata) -> tuple[dict[Path, TensorSpec], list[Path]]:
    """Tensors and values of a checkpoint, by path."""
    tensors: dict[Path, TensorSpec] = {}
    values: list[Path] = []
    for fqn, entry in metadata.state_dict_metadata.items():
        path = tuple((metadata.planner_data or {}).get(fqn, (fqn,)))
        if isinstance(entry, TensorStorageMetadata):
            tensors[path] = (tuple(entry.size), entry.properties.dtype)
        else:
            values.append(path)
    return tensors, values


def _saved_groups(
    reader: StorageReader, values: Iterable[Path], optimizers: Iterable[str]
) -> dict[str, list[frozenset[str]]]:
    """Names of the parameters in each saved group of each optimizer."""
    names = set(optimizers)
    wanted = [p for p in values if p[0] in names and p[1] == "param_groups" and p[-1] == "params"]
    flat: dict[str, Any] = {".".join(map(str, path)): None for path in wanted}
    if flat:
        PlannedLoad.of(flat, reader).read()
    groups: dict[str, list[frozenset[str]]] = {name: [] for name in names}
    for path in sorted(wanted, key=lambda path: int(path[2])):
        groups[str(path[0])].append(frozenset(flat[".".join(map(str, path))]))
    return groups


def _named_tensors(path: Path, value: Any) -> Iterable[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield ".".join(map(str, path)), value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_tensors((*path, str(key)), item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _named_tensors((*path, number), item)


def _live_digest(fqn: str, tensor: torch.Tensor) -> int:
    if not isinstance(tensor, DTensor):
        return chunk_digest(fqn, tensor, [0] * tensor.dim(), tensor.shape)
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None or any(
        place and isinstance(placement, Replicate)
        for place, placement in zip(coordinate, tensor.placements, strict=True)
    ):
        return 0
    local = tensor.to_local()
    (chunk,) = tensor.__create_chunk_list__()
    return chunk_digest(fqn, local, chunk.offsets, tensor.shape)
