"""The life of a save: one attempt at one step, the same function on every rank.

::

    plan     every rank says what it holds; the coordinator says who writes what
    stage    tensors to the host; when it ends, training may change them again
    write    every rank streams its shards; durable when it ends
    arrive   every rank's record reaches the coordinator
    publish  the coordinator creates the manifest: from here on the step is real
    depart   every rank learns the outcome

docs/protocol.md says what each crash in between leaves behind.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from keepstep import failpoints
from keepstep.commit.barrier import CommitBarrier
from keepstep.commit.layout import MANIFEST, CheckpointId
from keepstep.commit.lineage import check_not_fenced
from keepstep.commit.manifest import Manifest
from keepstep.errors import (
    BarrierTimeout,
    CommitAborted,
    CommitOutcomeUnknown,
    InternalError,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)
from keepstep.phases import Phase
from keepstep.storage.base import Storage
from keepstep.world import World


class Participant(Protocol):
    """What one rank brings to an attempt. ``checkpoint`` brings tensors, a test brings bytes."""

    def local_plan(self) -> bytes:
        """What this rank holds. *Ranks:* all."""
        ...

    def global_plan(self, local_plans: list[bytes]) -> list[bytes]:
        """Who writes what, by rank. *Ranks:* coordinator."""
        ...

    def stage(self, plan: bytes) -> None:
        """Take what this rank is to write out of training's way. *Ranks:* all."""
        ...

    def write(self, alive: Callable[[], None]) -> bytes:
        """Write it, calling ``alive`` now and then.

        *Ranks:* all. *Durability:* everything the returned record names is durable.
        """
        ...

    def manifest(self, records: list[bytes]) -> Manifest:
        """The commit record. *Ranks:* coordinator. *Durability:* everything it names is durable."""
        ...

    def discard(self) -> None:
        """Remove what this rank wrote, as far as possible. *Ranks:* all, after an abort."""
        ...


@dataclass(slots=True)
class Timeline:
    """How long each phase of a save took on this rank, in seconds."""

    step: int
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase and pass the crash sites at its borders."""
        failpoints.hit(f"{phase}.before", step=self.step)
        start = time.monotonic()
        yield
        self.seconds[phase] = time.monotonic() - start
        failpoints.hit(f"{phase}.after", step=self.step)


def save(
    participant: Participant,
    *,
    attempt: CheckpointId,
    storage: Storage,
    barrier: CommitBarrier,
    world: World,
    timeline: Timeline,
) -> None:
    """Make one step real, or leave the run as it was.

    *Ranks:* all. *Blocks:* on the slowest rank, as long as it gives signs of life.
    *Durability:* the step is committed once this returns.
    *Raises:* ``CommitError`` on every rank if the step is not committed: training may go on;
    ``FencedError`` if a newer generation has taken over: this process must stop.
    """
    try:
        with timeline.phase(Phase.PLAN):
            barrier.post(Phase.PLAN, participant.local_plan)
            if world.is_coordinator:
                barrier.answer(
                    Phase.PLAN, lambda: participant.global_plan(barrier.collect(Phase.PLAN))
                )
            plan = barrier.await_answer(Phase.PLAN)

        barrier.post(Phase.ARRIVE, lambda: _contribute(participant, plan, barrier, timeline))

        if world.is_coordinator:
            barrier.answer(
                Phase.DEPART,
                lambda: (
                    [_conclude(participant, attempt, storage, barrier, timeline)] * world.world_size
                ),
            )
        with timeline.phase(Phase.DEPART):
            _depart(barrier, storage, attempt)
    except (CommitAborted, BarrierTimeout, StorageError) as error:
        if _is_published(storage, attempt):
            return  # whatever went wrong, went wrong after the step had become real
        with suppress(StorageError):
            participant.discard()
        if isinstance(error, CommitAborted):
            raise
        raise CommitAborted(str(error), step=attempt.step, attempt=attempt.attempt) from error
    finally:
        barrier.close()


def _contribute(
    participant: Participant, plan: bytes, barrier: CommitBarrier, timeline: Timeline
) -> bytes:
    with timeline.phase(Phase.STAGE):
        participant.stage(plan)
    with timeline.phase(Phase.WRITE):
        record = participant.write(barrier.alive)
    failpoints.hit(f"{Phase.ARRIVE}.before", step=timeline.step)
    return record


def _conclude(
    participant: Participant,
    attempt: CheckpointId,
    storage: Storage,
    barrier: CommitBarrier,
    timeline: Timeline,
) -> bytes:
    start = time.monotonic()
    records = barrier.collect(Phase.ARRIVE)
    timeline.seconds[Phase.ARRIVE] = time.monotonic() - start
    failpoints.hit(f"{Phase.ARRIVE}.after", step=attempt.step)
    with timeline.phase(Phase.PUBLISH):
        publish(storage, participant.manifest(records))
    return b"committed"


def publish(storage: Storage, manifest: Manifest) -> None:
    """Create the manifest, unless an object is missing or a newer generation has started.

    *Ranks:* coordinator. *Durability:* the step is committed once this returns.
    *Raises:* ``CommitAborted`` if an object the manifest names is not in the store;
    ``FencedError`` if a newer generation has started, before or meanwhile;
    ``CommitOutcomeUnknown`` if the store cannot say whether the manifest is there.
    """
    _check_objects(storage, manifest)
    check_not_fenced(storage, manifest.generation)
    failpoints.hit("publish.middle", step=manifest.step)
    key, data = manifest.id.key(MANIFEST), manifest.to_bytes()
    if Manifest.from_bytes(data, key).to_bytes() != data:
        raise InternalError("the manifest does not survive writing and reading", key=key)
    try:
        storage.create(key, data)
    except (ObjectExists, StorageUnavailable) as error:
        # A create whose reply was lost looks like a conflict or an outage: the store knows which.
        _settle(storage, key, data, error)
    # A generation that started in between did not see this step: it is off the valid line.
    check_not_fenced(storage, manifest.generation)


def _check_objects(storage: Storage, manifest: Manifest) -> None:
    """What the ranks wrote must be there for the coordinator too, as large as they say."""
    found = {info.key: info.size_bytes for info in storage.list(manifest.id.prefix)}
    for record in manifest.objects:
        key = manifest.id.key(record.file)
        if found.get(key) != record.size_bytes:
            what = "is not there" if key not in found else f"has {found[key]} bytes"
            raise CommitAborted(
                f"{key} {what} where the coordinator looks; {record.size_bytes} bytes were "
                f"written. Do all ranks share {storage.uri}?",
                step=manifest.step,
            )


def _settle(storage: Storage, key: str, data: bytes, error: StorageError) -> None:
    try:
        found = storage.get(key)
    except ObjectNotFound:
        # The request may still be on its way, so this is not yet an abort.
        raise CommitOutcomeUnknown(
            "the manifest could not be created; it may still appear", key=key
        ) from error
    except StorageError:
        raise CommitOutcomeUnknown(
            "the manifest may have been created; the store does not answer", key=key
        ) from error
    if found != data:
        raise InternalError("another writer used this attempt's name", key=key) from error


def _depart(barrier: CommitBarrier, storage: Storage, attempt: CheckpointId) -> None:
    """Learn the outcome; if the coordinator fell silent, from the store."""
    try:
        barrier.await_answer(Phase.DEPART)
    except BarrierTimeout as error:
        if not _is_published(storage, attempt):
            raise CommitOutcomeUnknown(
                f"{error}; no manifest is there yet", step=attempt.step, attempt=attempt.attempt
            ) from error


def _is_published(storage: Storage, attempt: CheckpointId) -> bool:
    """Whether the manifest is there. *Raises:* ``CommitOutcomeUnknown`` if the store cannot say."""
    key = attempt.key(MANIFEST)
    try:
        Manifest.from_bytes(storage.get(key), key)
    except ObjectNotFound:
        return False
    except StorageError as error:
        raise CommitOutcomeUnknown(
            f"the store does not say whether the step was committed: {error}",
            step=attempt.step,
            attempt=attempt.attempt,
        ) from error
    return True
