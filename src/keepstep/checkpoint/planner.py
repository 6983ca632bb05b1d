"""DCP's default planners: replicas dealt out evenly, and values that execute nothing."""

import io
import pickle
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_local_load_plan,
)
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    WriteItem,
    WriteItemType,
)
from torch.distributed.tensor import DTensor

from keepstep.checkpoint.entries import Entries
from keepstep.checkpoint.replicas import deal
from keepstep.checkpoint.shards import Path, described
from keepstep.errors import ConfigError

KnownValues = dict[str, tuple[bytes | None, bytes]]
"""By name: a value, pickled to be compared where that is faster, and serialized."""


class SavePlanner(DefaultSavePlanner):
    """Plans as DCP does, but deals replicas out evenly, by rows if need be.

    Values are serialized once, and again only when they have changed.

    Args:
        known_values: Of earlier plans; kept up to date.
    """

    def __init__(self, known_values: KnownValues | None = None) -> None:
        super().__init__()
        self._known_values = {} if known_values is None else known_values
        self._values: dict[str, bytes] = {}
        self.held_offsets: dict[str, torch.Size] = {}
        """Where in each tensor this rank's part of it lies, once there is a local plan."""

    def set_up_entries(
        self, entries: Entries, paths: dict[str, Path], is_coordinator: bool
    ) -> None:
        """:meth:`set_up_planner` with a state dict that is flat already."""
        self.state_dict = entries
        self.mappings = paths
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self.held_offsets = {
            item.index.fqn: item.tensor_data.chunk.offsets
            for item in plan.items
            if item.tensor_data is not None
        }
        return plan

    def values(self) -> dict[str, bytes]:
        """Every entry that is not a tensor, serialized, by name.

        *Raises:* ``ConfigError`` naming an entry that could not be read back safely.
        """
        for fqn, value in self.state_dict.items():
            if fqn not in self._values and not isinstance(value, torch.Tensor):
                self._values[fqn] = self._serialized(fqn, value)
        return self._values

    def _serialized(self, fqn: str, value: Any) -> bytes:
        plain = pickle.dumps(value) if _is_plain(value) else None
        known = self._known_values.get(fqn)
        if plain is None or known is None or known[0] != plain:
            self._known_values[fqn] = known = (plain, serialize_value(fqn, value))
        return known[1]

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type is WriteItemType.BYTE_IO:
            return io.BytesIO(self.values()[write_item.index.fqn])
        held = self.held_offsets.get(write_item.index.fqn)
        with torch.no_grad():
            return held_chunk(self.state_dict[write_item.index.fqn], write_item, held)

    def _dedup_save_plans(self, all_plans: list[SavePlan]) -> list[SavePlan]:
        return deal(all_plans)


def held_chunk(
    entry: torch.Tensor, item: WriteItem, held_offsets: Sequence[int] | None
) -> torch.Tensor:
    """The chunk that an item stands for, as a view of what this rank holds of the tensor.

    Call it under ``torch.no_grad()``.

    Args:
        held_offsets: Of what this rank holds, in the tensor; by default of the whole tensor.
    """
    held = entry.to_local() if isinstance(entry, DTensor) else entry
    chunk = described(item).chunk
    if held.shape == chunk.sizes:
        return held
    for dimension, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
        first = held_offsets[dimension] if held_offsets else 0
        held = held.narrow(dimension, offset - first, size)
    return held


class LoadPlanner(DefaultLoadPlanner):
    """Plans as DCP does; values are read without executing anything from them."""

    def create_local_plan(self) -> LoadPlan:
        """DCP's plan, made once for all tensors that are cut alike here and in the checkpoint."""
        assert self.metadata is not None
        entries = self.metadata.state_dict_metadata
        if not entries.keys() >= self.state_dict.keys():
            return super().create_local_plan()  # which knows how torch 2.3 named things
        planned: dict[Hashable, list[ReadItem]] = {}
        items: list[ReadItem] = []
        for fqn, value in self.state_dict.items():
            cut = _cut(value, entries[fqn])
            if cut not in planned:
                plan = create_default_local_load_plan({fqn: value}, self.metadata)
                planned[cut] = plan.items
                items += plan.items
            else:
                items += [_renamed(item, fqn) for item in planned[cut]]
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        held = self.state_dict[read_item.dest_index.fqn]
        local = held.to_local() if isinstance(held, DTensor) else held
        if isinstance(local, torch.Tensor) and local.shape == read_item.lengths:
            return local
        found: torch.Tensor = super().resolve_tensor(read_item)
        return found

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        loaded = torch.load(value, weights_only=True, map_location="cpu")
        _set(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)


def _cut(value: Any, entry: BytesStorageMetadata | TensorStorageMetadata) -> Hashable:
    """Two tensors for which this is equal are read by the same pieces."""
    if isinstance(entry, BytesStorageMetadata):
        return None
    layout = (value.device_mesh, value.placements) if isinstance(value, DTensor) else type(value)
    chunks = tuple((chunk.offsets, chunk.sizes) for chunk in entry.chunks)
    return layout, getattr(value, "shape", None), entry.size, chunks


def _renamed(item: ReadItem, fqn: str) -> ReadItem:
    return ReadItem(
        type=item.type,
        dest_index=MetadataIndex(fqn, item.dest_index.offset, item.dest_index.index),
        dest_offsets=item.dest_offsets,
        storage_index=MetadataIndex(fqn, item.storage_index.offset, item.storage_index.index),
        storage_offsets=item.storage_offsets,
        lengths=item.lengths,
    )


def serialize_value(fqn: str, value: Any) -> bytes:
    """A value in the format of ``torch.save``, checked to load with ``weights_only=True``.

    An ``io.BytesIO`` is taken as serialized already.

    *Raises:* ``ConfigError`` naming the entry.
    """
    buffer = value if isinstance(value, io.BytesIO) else io.BytesIO()
    try:
        if buffer is not value:
            torch.save(value, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True, map_location="cpu")
    except Exception as error:  # pickle raises nearly anything; all of it means the same here
        raise ConfigError(
            f"state entry {fqn} ({type(value).__name__}) cannot be stored so that it loads "
            f"without executing code: {error}. Keep tensors, numbers, strings, lists and dicts in "
            "state_dict()"
        ) from error
    if (place := _find_set((fqn,), loaded)) is not None:
        # The order of a set of strings differs between processes, and ranks compare bytes.
        raise ConfigError(
            f"state entry {'.'.join(place)} is a set, which has no order; keep a sorted list in "
            "state_dict()"
        )
    return buffer.getvalue()


def _is_plain(value: Any) -> bool:
    """Whether a value pickles in no time: it holds nothing but numbers and text."""
    if isinstance(value, Mapping):
        return type(value) is dict and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _find_set(path: tuple[str, ...], value: Any) -> tuple[str, ...] | None:
    if isinstance(value, set):
        return path
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    found = (_find_set((*path, str(key)), item) for key, item in items)
    return next((place for place in found if place is not None), None)


def _set(container: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        container = container[key]
    container[path[-1]] = value
