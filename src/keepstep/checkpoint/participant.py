"""One rank's part in a save: DCP's plans and our writer, in the shape the protocol asks for."""

import gc
import hashlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from keepstep.checkpoint.digest import combined, format_digest, parse_digest
from keepstep.checkpoint.planner import SavePlanner
from keepstep.checkpoint.writer import ShardWriter
from keepstep.commit.layout import CheckpointId
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.errors import CommitAborted, InternalError
from keepstep.storage.base import Storage
from keepstep.world import World

Describe = Callable[[tuple[ObjectRecord, ...], str], Manifest]
"""From the objects and the state digest to the manifest."""


@dataclass(frozen=True, slots=True)
class _Record:
    """What a rank reports when it arrives."""

    objects: tuple[ObjectRecord, ...]
    results: tuple[WriteResult, ...]
    digest: int


class TensorParticipant:
    """Saves a state dict of tensors and values. One object per rank and attempt.

    Args:
        collect_state: Gives the state dict; called in ``plan``.
        from_coordinator: Names of replicated tensors that may differ between the ranks, of which
            the coordinator's are saved: buffers, which DDP broadcasts from there.
        is_common: Whether an entry, by name, belongs to the state all ranks share. Only that is in
            the state digest, and its values must be equal on all ranks.
    """

    def __init__(
        self,
        collect_state: Callable[[], dict[str, Any]],
        *,
        storage: Storage,
        attempt: CheckpointId,
        world: World,
        describe: Describe,
        from_coordinator: Callable[[], AbstractSet[str]],
        is_common: Callable[[str], bool],
    ) -> None:
        self._collect_state = collect_state
        self._world = world
        self._describe = describe
        self._from_coordinator = from_coordinator
        self._is_common = is_common
        self._planner = SavePlanner()
        self._writer = ShardWriter(storage, attempt)
        self._plan = SavePlan([])
        self._metadata: Metadata | None = None

    def local_plan(self) -> bytes:
        self._planner.set_up_planner(self._collect_state(), None, self._world.is_coordinator)
        self._writer.set_up_storage_writer(self._world.is_coordinator)
        plan = self._writer.prepare_local_plan(self._planner.create_local_plan())
        if not self._world.is_coordinator:
            others = self._from_coordinator()
            mine = [
                item
                for item in plan.items
                if item.type is not WriteItemType.TENSOR or item.index.fqn not in others
            ]
            plan = replace(plan, items=mine)
        digests = {
            fqn: hashlib.sha256(value).digest()
            for fqn, value in self._planner.values().items()
            if self._is_common(fqn)
        }
        return pickle.dumps((plan, digests))

    def global_plan(self, local_plans: list[bytes]) -> list[bytes]:
        with _collector_paused():
            plans, digests = zip(*(pickle.loads(plan) for plan in local_plans), strict=True)
        _check_values_are_equal(digests)
        deduplicated, self._metadata = self._planner.create_global_plan(list(plans))
        final = self._writer.prepare_global_plan(deduplicated)
        # The mappings from names to paths were merged into the metadata; each rank has its own.
        return [pickle.dumps(replace(plan, planner_data=None)) for plan in final]

    def stage(self, plan: bytes) -> None:
        final: SavePlan = pickle.loads(plan)
        mappings = self._planner.mappings
        self._plan = self._planner.finish_plan(replace(final, planner_data=mappings))
        self._planner.stage()

    def write(self, alive: Callable[[], None]) -> bytes:
        self._writer.alive = alive
        results = self._writer.write_data(self._plan, self._planner).wait()
        index = self._writer.index
        if index is None:
            raise InternalError("the writer left no index")
        common = (
            parse_digest(frame.digest)
            for frame in index.frames
            if frame.kind == "tensor" and self._is_common(frame.fqn)
        )
        record = _Record(tuple(self._writer.records()), tuple(results), combined(common))
        return pickle.dumps(record)

    def manifest(self, records: list[bytes]) -> Manifest:
        if self._metadata is None:
            raise InternalError("the plan was made elsewhere")
        arrived: list[_Record] = [pickle.loads(record) for record in records]
        metadata_record = self._writer.finish(
            self._metadata, [list(record.results) for record in arrived]
        )
        objects = [entry for record in arrived for entry in record.objects]
        digest = format_digest(combined(record.digest for record in arrived))
        return self._describe((*objects, metadata_record), digest)

    def discard(self) -> None:
        self._writer.discard()


def check_values(state_dict: dict[str, Any]) -> None:
    """*Raises:* ``ConfigError`` naming an entry of a state dict that could not be stored."""
    planner = SavePlanner()
    planner.set_up_planner(state_dict)
    planner.values()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Unpickling many small objects sets off the cyclic collector again and again, for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_values_are_equal(digests: tuple[Mapping[str, bytes], ...]) -> None:
    for rank, mine in enumerate(digests):
        for fqn in mine.keys() | digests[0].keys():
            if mine.get(fqn) != digests[0].get(fqn):
                raise CommitAborted(
                    f"state entry {fqn} differs between ranks 0 and {rank}; tracked objects must "
                    "have the same state on all ranks"
                )
