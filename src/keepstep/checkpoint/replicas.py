"""Dealing out what several ranks hold alike, so that each writes as many bytes as the others.

Everything that the same ranks hold is laid end to end and cut where each of them has its share: at
rows of tensors, whole tensors where they are small. A cut tensor is saved as chunks, which every
DCP reader puts together again.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from keepstep.checkpoint.shards import described

_UNCUT_BYTES = 64 << 10
"""Smaller tensors are not cut."""


@dataclass(slots=True)
class _Holders:
    """Items that exactly these ranks hold."""

    ranks: tuple[int, ...]
    items: list[WriteItem]

    @property
    def size_bytes(self) -> int:
        return sum(_size_bytes(item) for item in self.items)


def deal(plans: Sequence[SavePlan]) -> list[SavePlan]:
    """Give every item of the ranks' plans to one rank, or part by part to several.

    The rank that has the most bytes to write then has hardly more than the average, as far as
    replicas can make up for it. *Ranks:* coordinator. Pure.
    """
    loads = [0] * len(plans)
    dealt: list[list[WriteItem]] = [[] for _ in plans]
    for group in sorted(_groups(plans), key=lambda group: len(group.ranks)):
        for rank, item in _dealt(group, loads):
            dealt[rank].append(item)
            loads[rank] += _size_bytes(item)
    return [replace(plan, items=items) for plan, items in zip(plans, dealt, strict=True)]


def _groups(plans: Sequence[SavePlan]) -> list[_Holders]:
    holders: dict[MetadataIndex, list[int]] = {}
    items: dict[MetadataIndex, WriteItem] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            holders.setdefault(item.index, []).append(rank)
            items.setdefault(item.index, item)
    groups: dict[tuple[int, ...], _Holders] = {}
    for index, ranks in holders.items():
        group = groups.setdefault(tuple(ranks), _Holders(tuple(ranks), []))
        group.items.append(items[index])
    return list(groups.values())


def _dealt(group: _Holders, loads: Sequence[int]) -> Iterator[tuple[int, WriteItem]]:
    if len(group.ranks) == 1:
        yield from ((group.ranks[0], item) for item in group.items)
        return
    shares = deque(_shares(group, loads))
    rank, room = shares.popleft()
    pending = deque(group.items)
    while pending:
        item = pending.popleft()
        size = _size_bytes(item)
        is_last = not shares
        if is_last or size <= room or (size <= _UNCUT_BYTES and room >= size // 2):
            yield rank, item
            room -= size
        elif size <= _UNCUT_BYTES or room < _UNCUT_BYTES // 2:
            pending.appendleft(item)
            rank, room = shares.popleft()
        else:
            pending.extendleft(reversed(_cut(item, room)))


def _shares(group: _Holders, loads: Sequence[int]) -> list[tuple[int, int]]:
    """How many bytes each holder takes, so that all are filled to the same level."""
    by_load = sorted(group.ranks, key=lambda rank: loads[rank])
    below = 0
    remaining = group.size_bytes
    level = loads[by_load[0]]
    for count, rank in enumerate(by_load, start=1):
        below += loads[rank]
        level = -(-(below + remaining) // count)
        if count == len(by_load) or level <= loads[by_load[count]]:
            break
    return [(rank, max(level - loads[rank], 0)) for rank in group.ranks]


def _cut(item: WriteItem, room: int) -> list[WriteItem]:
    """Cut a chunk of more than ``room`` bytes so that its first part is at most so many.

    Every part is one run of the chunk's bytes; an element fits into ``room``.
    """
    tensor = described(item)
    sizes = tuple(tensor.chunk.sizes)
    along = next(d for d, size in enumerate(sizes) if size > 1)
    row_bytes = math.prod(sizes[along + 1 :]) * tensor.properties.dtype.itemsize
    rows = room // row_bytes
    if rows:
        return [_part(item, along, 0, rows), _part(item, along, rows, sizes[along])]
    first = _part(item, along, 0, 1)
    return [*_cut(first, room), _part(item, along, 1, sizes[along])]


def _part(item: WriteItem, along: int, start: int, stop: int) -> WriteItem:
    """Rows ``start`` to ``stop`` of a chunk along one dimension, as a chunk of its own."""
    tensor = described(item)
    offsets, sizes = list(tensor.chunk.offsets), list(tensor.chunk.sizes)
    offsets[along] += start
    sizes[along] = stop - start
    chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
    return WriteItem(
        MetadataIndex(item.index.fqn, chunk.offsets),
        WriteItemType.SHARD,
        tensor_data=replace(tensor, chunk=chunk),
    )


def _size_bytes(item: WriteItem) -> int:
    if item.tensor_data is None:
        return 0
    tensor = item.tensor_data
    return math.prod(tensor.chunk.sizes) * tensor.properties.dtype.itemsize
