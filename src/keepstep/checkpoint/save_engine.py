"""What saving keeps from one save to the next: the plan, the memory and the threads."""

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from keepstep.checkpoint.contents import Slabs
from keepstep.checkpoint.entries import Structure
from keepstep.checkpoint.host_memory import CopyStreams
from keepstep.checkpoint.planner import KnownValues
from keepstep.checkpoint.shards import ShardIndex, ShardLayout, chunk_places
from keepstep.checkpoint.staging import Staging
from keepstep.checkpoint.writer import WRITER_THREADS, split_items, stock_metadata
from keepstep.commit.layout import shard_filename


class SaveMode(StrEnum):
    """When training goes on after a save has begun."""

    SYNC = "sync"
    """When the step is committed."""
    ASYNC = "async"
    """When the tensors are copied."""
    OVERLAP = "overlap"
    """At once; the next optimizer step waits for the copy."""


@dataclass(frozen=True, slots=True)
class RankPlan:
    """What one rank writes, as long as the state has this structure."""

    token: bytes
    """Of the global plan this is part of."""
    structure: Structure
    held_offsets: Mapping[str, Sequence[int]]
    """Where in each tensor this rank's part of it lies."""
    layout: ShardLayout
    index: ShardIndex
    values: Sequence[WriteItem]


class GlobalPlan:
    """What all ranks write. *Ranks:* coordinator."""

    def __init__(self, plans: Sequence[SavePlan], metadata: Metadata) -> None:
        self.token = secrets.token_bytes(8)
        self._metadata = metadata
        self._chunks: dict[MetadataIndex, _StorageInfo] = {}
        for rank, plan in enumerate(plans):
            tensors, _ = split_items(plan.items)
            for item, place in chunk_places(tensors, shard_filename(rank, 0)):
                self._chunks[item.index] = place
        self._known_values: Mapping[MetadataIndex, _StorageInfo] = {}
        self._known: bytes | None = None

    def stock_metadata(self, values: Mapping[MetadataIndex, _StorageInfo]) -> bytes:
        """``.metadata`` for values at these places; made anew only if they have moved."""
        if self._known is None or values != self._known_values:
            self._known = stock_metadata(self._metadata, self._chunks | dict(values))
            self._known_values = values
        return self._known


class SaveEngine:
    """One rank's means of saving. One save at a time; close it after the last."""

    def __init__(self, mode: SaveMode, *, num_threads: int = WRITER_THREADS) -> None:
        self.mode = mode
        self.plan: RankPlan | None = None
        self.global_plan: GlobalPlan | None = None
        self.known_values: KnownValues = {}
        self.streams = CopyStreams()
        self.staging = Staging(self.streams)
        self.slabs = Slabs(num_threads)
        self.threads = ThreadPoolExecutor(num_threads, thread_name_prefix="keepstep")

    @property
    def allocations(self) -> int:
        """How often host memory was allocated for saving, so far."""
        return self.staging.allocations + self.slabs.allocations

    def close(self) -> None:
        """End the threads and free the memory. No save may be under way."""
        self.threads.shutdown()
        self.staging.close()
        self.slabs.close()
