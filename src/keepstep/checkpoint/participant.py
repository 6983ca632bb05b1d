"""One rank's part in a save: DCP's plans and our writer, in the shape the protocol asks for."""

import hashlib
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from keepstep.checkpoint.collector import collector_paused
from keepstep.checkpoint.contents import Contents, LiveContents
from keepstep.checkpoint.digest import combined, format_digest
from keepstep.checkpoint.entries import (
    Entries,
    Structure,
    check_tensors,
    flatten,
    structure_of,
)
from keepstep.checkpoint.planner import SavePlanner, held_chunk
from keepstep.checkpoint.samples import Samples, check_alike, samples_of
from keepstep.checkpoint.save_engine import GlobalPlan, RankPlan, SaveEngine, SaveMode
from keepstep.checkpoint.shards import ShardIndex, ShardLayout, Values, value_places
from keepstep.checkpoint.staging import UNGUARDED, StagedContents, Version
from keepstep.checkpoint.writer import ShardWriter, split_items
from keepstep.commit.layout import CheckpointId
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.errors import CommitAborted, InternalError
from keepstep.storage.base import Storage
from keepstep.world import World

Describe = Callable[[tuple[ObjectRecord, ...], str], Manifest]
"""From the objects and the state digest to the manifest."""


@dataclass(frozen=True, slots=True)
class TrackedState:
    """What a save has to know of the state besides its entries.

    *Ranks:* the same on all ranks, but for the tensors.
    """

    collect: Callable[[], dict[str, Any]]
    """The state dict; called in ``plan``."""
    from_coordinator: Callable[[], AbstractSet[str]]
    """Names of replicated tensors that may differ between the ranks, of which the coordinator's are
    saved: buffers, which DDP broadcasts from there."""
    is_common: Callable[[str], bool]
    """Whether an entry, by name, belongs to the state all ranks share. Only that is in the state
    digest, and its values must be equal on all ranks."""
    guarded: Callable[[], Callable[[str], bool]]
    """Gives what tells by name which tensors change in the optimizer step alone."""


class TensorParticipant:
    """Saves a state dict of tensors and values. One object per rank and attempt."""

    def __init__(
        self,
        engine: SaveEngine,
        state: TrackedState,
        *,
        storage: Storage,
        attempt: CheckpointId,
        world: World,
        describe: Describe,
    ) -> None:
        self._engine = engine
        self._state = state
        self._world = world
        self._describe = describe
        self._planner = SavePlanner(engine.known_values)
        self._writer = ShardWriter(storage, attempt, threads=engine.threads)
        self._entries: Entries = {}
        self._structure: Structure = []
        self._contents: Contents | None = None
        self._copying: Future[None] | None = None
        self._settled = threading.Event()
        self._is_spoiled = False
        self.published: Manifest | None = None
        """On the coordinator, once it was made."""

    def local_plan(self, *, is_whole: bool) -> bytes:
        with collector_paused():
            self._entries, paths = flatten(self._state.collect())
            self._structure = structure_of(self._entries)
            self._planner.set_up_entries(self._entries, paths, self._world.is_coordinator)
            values = {
                fqn: hashlib.sha256(value).digest()
                for fqn, value in self._planner.values().items()
                if self._state.is_common(fqn)
            }
            plan = self._engine.plan
            if plan is not None and plan.structure == self._structure and not is_whole:
                return pickle.dumps(_KnownPlan(plan.token, _digest_of_all(values)))
            return pickle.dumps(_WholePlan(self._whole_plan(), values, self._samples()))

    def global_plan(self, local_plans: list[bytes]) -> list[bytes] | None:
        with collector_paused():
            plans: list[_KnownPlan | _WholePlan] = [pickle.loads(plan) for plan in local_plans]
            whole = [plan for plan in plans if isinstance(plan, _WholePlan)]
            if len(whole) == len(plans):
                return self._new_global_plan(whole)
            known, first = self._engine.global_plan, plans[0]
            is_known = (
                known is not None
                and isinstance(first, _KnownPlan)
                and first.token == known.token
                and all(plan == first for plan in plans)
            )
            return [pickle.dumps(None)] * len(plans) if is_known else None

    def stage(self, plan: bytes, alive: Callable[[], None]) -> None:
        with collector_paused(), torch.no_grad():
            rank_plan = self._take(pickle.loads(plan))
            layout = rank_plan.layout
            items = [slot.item for slot in layout.slots]
            held = rank_plan.held_offsets
            sources = [
                held_chunk(self._entries[item.index.fqn], item, held[item.index.fqn])
                for item in items
            ]
            serialized = self._planner.values()
            data = [serialized[item.index.fqn] for item in rank_plan.values]
            values = Values.of(rank_plan.values, data, layout.size_bytes)
        if self._engine.mode is SaveMode.SYNC:
            self._contents = LiveContents(
                layout, sources, values, self._engine.slabs, self._engine.streams
            )
            return
        staged = self._engine.staging.prepare(layout, sources, values, alive)
        self._contents = staged
        if self._engine.mode is SaveMode.ASYNC:
            staged.copy(range(len(items)), alive)
            return
        is_guarded = self._state.guarded()
        is_late = [is_guarded(item.index.fqn) for item in items]
        staged.copy([number for number, late in enumerate(is_late) if not late], alive)
        if late := [number for number, late in enumerate(is_late) if late]:
            versions = self._versions(late, items, sources)
            self._copying = self._engine.threads.submit(staged.copy_unchanged, late, versions)

    def vouch(self) -> None:
        """Return once the tensors may change; they have not before, says the training loop.

        *Ranks:* local. An error shows in :meth:`write`.
        """
        if self._copying is not None:
            self._copying.exception()  # waits
            self._settled.set()

    def spoil(self) -> None:
        """Fail unless the training loop has vouched: it has taken a step. *Ranks:* local.

        Even if the copy is made: it may hold some of what the step has written.
        """
        if self._copying is not None and not self._settled.is_set():
            self._is_spoiled = True
            self._settled.set()

    def is_vouched_for(self, *, within_seconds: float) -> bool:
        """Whether what was copied may count; waits for so long. *Raises:* ``CommitAborted``."""
        if self._copying is None:
            return True
        is_settled = self._settled.wait(within_seconds)
        if self._is_spoiled:
            raise CommitAborted(UNGUARDED)
        return is_settled or not threading.main_thread().is_alive()  # who has ended takes no step

    def release(self) -> None:
        """Let go of the tensors: the attempt is over, whatever came of it."""
        self._contents = None
        self._entries = {}
        self._planner.state_dict = {}

    def write(self, alive: Callable[[], None]) -> bytes:
        plan, contents = self._engine.plan, self._contents
        if plan is None or contents is None:
            raise InternalError("nothing was staged")
        self._check_copied()
        digests = self._writer.write_shard(contents, plan.index, alive=alive)
        common = (
            digest
            for slot, digest in zip(plan.layout.slots, digests, strict=True)
            if self._state.is_common(slot.item.index.fqn)
        )
        file = plan.index.file
        places = {
            item.index: place for item, place in value_places(contents.values, plan.layout, file)
        }
        record = _Record(tuple(self._writer.records()), places, combined(common))
        return pickle.dumps(record)

    def manifest(self, records: list[bytes]) -> Manifest:
        plan = self._engine.global_plan
        if plan is None:
            raise InternalError("the plan was made elsewhere")
        arrived: list[_Record] = [pickle.loads(record) for record in records]
        values = {index: place for record in arrived for index, place in record.values.items()}
        metadata_record = self._writer.put_metadata(plan.stock_metadata(values))
        objects = [entry for record in arrived for entry in record.objects]
        digest = format_digest(combined(record.digest for record in arrived))
        self.published = self._describe((*objects, metadata_record), digest)
        return self.published

    def discard(self) -> None:
        self._writer.discard()

    def _check_copied(self) -> None:
        """Wait for a copy that is still being made. *Raises:* what went wrong with it."""
        if self._copying is not None:
            self._copying.result()
        if self._is_spoiled:
            raise CommitAborted(UNGUARDED)
        if isinstance(self._contents, StagedContents):
            self._contents.release()
        self._entries = {}

    def _versions(
        self, numbers: Sequence[int], items: Sequence[WriteItem], sources: Sequence[torch.Tensor]
    ) -> list[Version]:
        """A step on a ``DTensor`` counts there, and not in the local tensor that is copied."""
        wholes = [self._entries[items[number].index.fqn] for number in numbers]
        tensors = [*wholes, *(sources[number] for number in numbers)]
        return [(tensor, tensor._version) for tensor in tensors]

    def _whole_plan(self) -> SavePlan:
        check_tensors(self._entries)
        plan = self._writer.prepare_local_plan(self._planner.create_local_plan())
        if self._world.is_coordinator:
            return plan
        others = self._state.from_coordinator()
        mine = [
            item
            for item in plan.items
            if item.type is not WriteItemType.TENSOR or item.index.fqn not in others
        ]
        return replace(plan, items=mine)

    def _samples(self) -> Samples:
        """Of what must be the same on all ranks that hold it."""
        if self._world.world_size == 1:
            return {}
        others = self._state.from_coordinator()
        return samples_of(
            self._entries, lambda fqn: self._state.is_common(fqn) and fqn not in others
        )

    def _new_global_plan(self, wholes: list["_WholePlan"]) -> list[bytes]:
        _check_values_are_equal([whole.values for whole in wholes])
        check_alike([whole.samples for whole in wholes])
        plans, metadata = self._planner.create_global_plan([whole.plan for whole in wholes])
        self._engine.global_plan = GlobalPlan(plans, metadata)
        token = self._engine.global_plan.token
        return [pickle.dumps(_NewPlan(token, plan.items)) for plan in plans]

    def _take(self, new: "_NewPlan | None") -> RankPlan:
        """The plan to go by: the one that is kept, unless there is a new one, which is kept."""
        if new is not None:
            tensors, values = split_items(new.items)
            layout = ShardLayout(tensors)
            self._engine.plan = RankPlan(
                new.token,
                self._structure,
                self._planner.held_offsets,
                layout,
                ShardIndex(self._world.rank, layout, self._planner.mappings),
                values,
            )
        if self._engine.plan is None:
            raise InternalError("there is no plan to keep to")
        return self._engine.plan


def check_storable(state_dict: dict[str, Any]) -> None:
    """*Raises:* ``ConfigError`` naming an entry of a state dict that could not be stored."""
    entries, paths = flatten(state_dict)
    check_tensors(entries)
    planner = SavePlanner()
    planner.set_up_entries(entries, paths, is_coordinator=False)
    planner.values()


@dataclass(frozen=True, slots=True)
class _KnownPlan:
    """A rank's local plan that is still the one of a global plan."""

    token: bytes
    values: bytes
    """Digest of all common values."""


@dataclass(frozen=True, slots=True)
class _WholePlan:
    """A rank's local plan."""

    plan: SavePlan
    values: Mapping[str, bytes]
    """Digest of each common value."""
    samples: Samples
    """Of tensors that other ranks hold as well."""


@dataclass(frozen=True, slots=True)
class _NewPlan:
    """The coordinator's answer to local plans."""

    token: bytes
    items: list[WriteItem]


@dataclass(frozen=True, slots=True)
class _Record:
    """What a rank reports when it arrives."""

    objects: tuple[ObjectRecord, ...]
    values: Mapping[MetadataIndex, _StorageInfo]
    digest: int


def _digest_of_all(values: Mapping[str, bytes]) -> bytes:
    return hashlib.sha256(b"".join(fqn.encode() + values[fqn] for fqn in sorted(values))).digest()


def _check_values_are_equal(digests: list[Mapping[str, bytes]]) -> None:
    for rank, mine in enumerate(digests):
        for fqn in mine.keys() | digests[0].keys():
            if mine.get(fqn) != digests[0].get(fqn):
                raise CommitAborted(
                    f"state entry {fqn} differs between ranks 0 and {rank}; tracked objects must "
                    "have the same state on all ranks"
                )
