"""The life of a save: one attempt at one step, the same on every rank.

::

    plan     every rank says what it holds; the coordinator says who writes what
    stage    tensors to the host; when it ends, training may change them again
    write    every rank streams its shards; durable when it ends
    arrive   every rank's record reaches the coordinator
    publish  the coordinator creates the manifest: from here on the step is real
    depart   every rank learns the outcome

docs/protocol.md says what each crash in between leaves behind.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from keepstep import failpoints
from keepstep.commit.barrier import CommitBarrier
from keepstep.commit.layout import MANIFEST, CheckpointId
from keepstep.commit.lineage import check_not_fenced
from keepstep.commit.manifest import Manifest
from keepstep.errors import (
    BarrierTimeout,
    CommitAborted,
    CommitOutcomeUnknown,
    CoordinationError,
    InternalError,
    KeepstepError,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)
from keepstep.observability.counters import COUNTERS, STORAGE_ERRORS
from keepstep.phases import Phase
from keepstep.storage.base import ShowsBeforeDurable, Storage
from keepstep.world import World

_WHOLE_PLAN = f"{Phase.PLAN}.whole"
_PATIENCE_SECONDS = 300.0
"""How long a rank that waits for the store counts as alive: a few requests with their retries."""

_LONG_PLANS_BYTES = 1 << 20
"""Local plans of so many bytes may take the coordinator longer than a rank may be silent."""

_ASKED, _GIVEN = b"?", b"="


class Participant(Protocol):
    """What one rank brings to an attempt. ``checkpoint`` brings tensors, a test brings bytes."""

    def local_plan(self, *, is_whole: bool) -> bytes:
        """What this rank holds; unless the whole is asked for, a reference to it will do.

        *Ranks:* all.
        """
        ...

    def global_plan(self, local_plans: list[bytes]) -> list[bytes] | None:
        """Who writes what, by rank; ``None`` if the whole local plans are needed.

        *Ranks:* coordinator.
        """
        ...

    def stage(self, plan: bytes, alive: Callable[[], None]) -> None:
        """Take what this rank is to write out of training's way, calling ``alive`` now and then.

        *Ranks:* all.
        """
        ...

    def write(self, alive: Callable[[], None]) -> bytes:
        """Write it, calling ``alive`` now and then.

        *Ranks:* all. *Durability:* everything the returned record names is durable.
        """
        ...

    def is_vouched_for(self, *, within_seconds: float) -> bool:
        """Whether training kept off what was staged until it was copied; waits so long to know.

        *Ranks:* all, after :meth:`write`. *Raises:* ``CommitAborted`` if it did not.
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
        try:
            yield
        except StorageError as error:
            COUNTERS.add(STORAGE_ERRORS, kind=type(error).__name__)
            raise
        self.seconds[phase] = time.monotonic() - start
        failpoints.hit(f"{phase}.after", step=self.step)


class Attempt:
    """One try at one step, on one rank.

    *Ranks:* one object each; both methods are called by all ranks, in this order. They may be
    called by different threads, and training may go on in between.

    Args:
        timeline: Takes down how long each phase lasts.
        deadline_seconds: After so long a rank that is still copying or writing gives up.
    """

    def __init__(
        self,
        participant: Participant,
        *,
        id: CheckpointId,
        storage: Storage,
        barrier: CommitBarrier,
        world: World,
        timeline: Timeline,
        deadline_seconds: float = math.inf,
    ) -> None:
        self.id = id
        self._participant = participant
        self._storage = storage
        self._barrier = barrier
        self._world = world
        self._timeline = timeline
        self._deadline_seconds = deadline_seconds
        self._began = time.monotonic()
        self._problem: Exception | None = None

    def prepare(self) -> None:
        """Plan and stage. Once this returns, training may change what is saved.

        *Blocks:* on the slowest rank, as long as it gives signs of life.
        *Raises:* ``CommitError`` on every rank if there is no plan: the attempt is over. A rank
        that cannot stage says so in :meth:`persist`.
        """
        try:
            with self._timeline.phase(Phase.PLAN):
                plan = self._plan()
        except (CommitAborted, BarrierTimeout, StorageError) as error:
            self._abort(error)
        except BaseException:
            self._barrier.close()
            raise
        try:
            with self._timeline.phase(Phase.STAGE):
                self._participant.stage(plan, self._alive)
        except Exception as error:  # noqa: BLE001  # posted in place of a record: all must hear
            self._problem = error

    def persist(self) -> None:
        """Make the step real, or leave the run as it was.

        *Blocks:* on the slowest rank, as long as it gives signs of life.
        *Durability:* the step is committed once this returns.
        *Raises:* ``CommitError`` on every rank if the step is not committed: training may go on;
        ``FencedError`` if a newer generation has taken over: this process must stop.
        """
        try:
            self._barrier.post(Phase.ARRIVE, self._contribute)
            if self._world.is_coordinator:
                self._barrier.answer(
                    Phase.DEPART, lambda: [self._conclude()] * self._world.world_size
                )
            with self._timeline.phase(Phase.DEPART):
                _depart(self._barrier, self._storage, self.id)
        except CoordinationError as error:
            # What this rank wrote stays: its record may have arrived, and the step be published.
            if not _is_published(self._storage, self.id):
                raise _unknown(error, self.id) from error
        except (CommitAborted, StorageError) as error:
            if _is_published(self._storage, self.id):
                return  # whatever went wrong, went wrong after the step had become real
            self._abort(error)
        finally:
            self._barrier.close()

    def _plan(self) -> bytes:
        """The final plan of this rank: by a short exchange if all know it already."""
        plan = self._exchange_plans(Phase.PLAN, is_whole=False)
        if plan == _ASKED:
            plan = self._exchange_plans(_WHOLE_PLAN, is_whole=True)
        return plan[1:]

    def _exchange_plans(self, topic: str, *, is_whole: bool) -> bytes:
        participant, barrier = self._participant, self._barrier
        barrier.post(topic, lambda: participant.local_plan(is_whole=is_whole))
        if self._world.is_coordinator:
            barrier.answer(topic, lambda: self._global_plan(topic))
        return barrier.await_answer(topic)

    def _global_plan(self, topic: str) -> list[bytes]:
        local_plans = self._barrier.collect(topic)
        takes_long = sum(map(len, local_plans)) >= _LONG_PLANS_BYTES
        with self._barrier.kept_alive(_PATIENCE_SECONDS) if takes_long else nullcontext():
            plans = self._participant.global_plan(local_plans)
        if plans is None:
            return [_ASKED] * self._world.world_size
        return [_GIVEN + plan for plan in plans]

    def _contribute(self) -> bytes:
        if self._problem is not None:
            raise self._problem
        with self._timeline.phase(Phase.WRITE), self._barrier.kept_alive(_PATIENCE_SECONDS):
            record = self._participant.write(self._alive)
        # No part of writing: neither its deadline nor its time counts.
        self._barrier.await_loop(lambda s: self._participant.is_vouched_for(within_seconds=s))
        failpoints.hit(f"{Phase.ARRIVE}.before", step=self.id.step)
        return record

    def _alive(self) -> None:
        if time.monotonic() - self._began > self._deadline_seconds:
            raise CommitAborted(
                f"the save is not written after {self._deadline_seconds:.0f} s, its deadline",
                rank=self._world.rank,
            )
        self._barrier.alive()

    def _conclude(self) -> bytes:
        start = time.monotonic()
        records = self._barrier.collect(Phase.ARRIVE)
        self._timeline.seconds[Phase.ARRIVE] = time.monotonic() - start
        failpoints.hit(f"{Phase.ARRIVE}.after", step=self.id.step)
        with self._timeline.phase(Phase.PUBLISH), self._barrier.kept_alive(_PATIENCE_SECONDS):
            publish(self._storage, self._participant.manifest(records))
        return b"committed"

    def _abort(self, error: KeepstepError) -> NoReturn:
        """End the attempt: what was written is removed, and every error means the same."""
        self._barrier.close()
        with suppress(StorageError):
            self._participant.discard()
        if isinstance(error, CommitAborted):
            raise error
        raise CommitAborted(str(error), step=self.id.step, attempt=self.id.attempt) from error


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
        found = _read_durable(storage, key)
    except ObjectNotFound:
        # The request may still be on its way, so this is not yet an abort.
        raise CommitOutcomeUnknown(
            f"the manifest could not be created; it may still appear: {error}", key=key
        ) from error
    except StorageError:
        raise CommitOutcomeUnknown(
            f"the manifest may have been created; the store does not say: {error}", key=key
        ) from error
    if found != data:
        raise InternalError("another writer used this attempt's name", key=key) from error


def _depart(barrier: CommitBarrier, storage: Storage, attempt: CheckpointId) -> None:
    """Learn the outcome; if the coordinator fell silent or cannot be reached, from the store."""
    try:
        barrier.await_answer(Phase.DEPART)
    except (BarrierTimeout, CoordinationError) as error:
        if not _is_published(storage, attempt):
            raise _unknown(error, attempt) from error


def _unknown(error: KeepstepError, attempt: CheckpointId) -> CommitOutcomeUnknown:
    return CommitOutcomeUnknown(
        f"{error}; no manifest is there yet", step=attempt.step, attempt=attempt.attempt
    )


def _is_published(storage: Storage, attempt: CheckpointId) -> bool:
    """Whether the manifest is there. *Raises:* ``CommitOutcomeUnknown`` if the store cannot say."""
    key = attempt.key(MANIFEST)
    try:
        Manifest.from_bytes(_read_durable(storage, key), key)
    except ObjectNotFound:
        return False
    except StorageError as error:
        raise CommitOutcomeUnknown(
            f"the store does not say whether the step was committed: {error}",
            step=attempt.step,
            attempt=attempt.attempt,
        ) from error
    return True


def _read_durable(storage: Storage, key: str) -> bytes:
    """An object, which is durable by now, even if whoever created it could not see to that."""
    data = storage.get(key)
    if isinstance(storage, ShowsBeforeDurable):
        storage.make_durable(key)
    return data
