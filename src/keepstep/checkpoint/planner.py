"""DCP's default planners, changed to stage, and to keep values from executing anything."""

import io
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import ReadItem, WriteItem, WriteItemType

from keepstep.errors import ConfigError


class SavePlanner(DefaultSavePlanner):
    """Plans as DCP does; values are serialized once, tensors written from the staged copy."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, bytes] = {}
        self._staged: dict[MetadataIndex, torch.Tensor] = {}

    def values(self) -> dict[str, bytes]:
        """Every entry that is not a tensor, serialized, by name.

        *Raises:* ``ConfigError`` naming an entry that could not be read back safely.
        """
        for fqn, value in self.state_dict.items():
            if fqn not in self._values and not isinstance(value, torch.Tensor):
                self._values[fqn] = serialize_value(fqn, value)
        return self._values

    def stage(self) -> None:
        """Bring everything this rank is to write to the host. *Ranks:* local.

        Host tensors are not copied: a synchronous save ends before training changes them.
        """
        for item in self.plan.items:
            if item.type is not WriteItemType.BYTE_IO:
                tensor = cast("torch.Tensor", super().resolve_data(item))
                self._staged[item.index] = tensor.detach().to("cpu").contiguous()

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type is WriteItemType.BYTE_IO:
            return io.BytesIO(self.values()[write_item.index.fqn])
        staged = self._staged.get(write_item.index)
        if staged is None:  # under stock DCP, which has no phase for staging
            return cast("torch.Tensor", super().resolve_data(write_item))
        return staged


class LoadPlanner(DefaultLoadPlanner):
    """Plans as DCP does; values are read without executing anything from them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        loaded = torch.load(value, weights_only=True, map_location="cpu")
        _set(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)


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
