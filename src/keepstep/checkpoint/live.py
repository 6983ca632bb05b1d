"""Digests of a state as it is in memory, entry by entry: comparable with what an index says."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from keepstep.checkpoint.digest import chunk_digest, format_digest
from keepstep.checkpoint.entries import flatten
from keepstep.checkpoint.planner import SavePlanner
from keepstep.commit.blocks import crc32c_digest

LiveEntry = tuple[str, list[int] | None, str]
"""Name; offsets of a shard, ``None`` for what is whole; digest, in the words of an index."""


def live_entries(state_dict: dict[str, Any]) -> list[LiveEntry]:
    """Every tensor and value that a save of this state would hold. *Ranks:* local."""
    entries, paths = flatten(state_dict)
    planner = SavePlanner()
    planner.set_up_entries(entries, paths, is_coordinator=False)
    values = [(fqn, None, crc32c_digest(data)) for fqn, data in planner.values().items()]
    tensors = [_tensor(fqn, t) for fqn, t in entries.items() if isinstance(t, torch.Tensor)]
    return [*tensors, *values]


def _tensor(fqn: str, tensor: torch.Tensor) -> LiveEntry:
    if not isinstance(tensor, DTensor):
        digest = chunk_digest(fqn, tensor, [0] * tensor.dim(), tensor.shape)
        return fqn, None, format_digest(digest)
    local = tensor.to_local()
    (chunk,) = tensor.__create_chunk_list__()
    digest = chunk_digest(fqn, local, chunk.offsets, tensor.shape)
    return fqn, list(chunk.offsets), format_digest(digest)
