"""The save protocol, run for real by ranks that are threads, over stores that fail on purpose."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from bytes_participant import BytesParticipant

from keepstep import failpoints
from keepstep.commit.barrier import CommitBarrier
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.layout import MANIFEST, CheckpointId, new_attempt
from keepstep.commit.lineage import claim_generation
from keepstep.commit.protocol import Attempt, Timeline
from keepstep.commit.verify import verify_checkpoint
from keepstep.errors import (
    BarrierTimeout,
    CommitAborted,
    CommitOutcomeUnknown,
    FencedError,
    InternalError,
    ObjectExists,
    StorageFull,
    StorageUnavailable,
)
from keepstep.phases import Phase
from keepstep.storage.base import Buffer, ObjectInfo, Storage
from keepstep.testing.memory_storage import MemoryStorage
from keepstep.testing.memory_store import MemoryStore
from keepstep.world import World

Interfere = Callable[[int, str], None]


class Job:
    """A process group of threads with a generation of its own."""

    def __init__(self, storage: Storage, world_size: int = 3) -> None:
        self.storage = storage
        self.world_size = world_size
        self.store = MemoryStore()
        newest = max(Catalog(storage).generations(), default=0)
        latest = Catalog(storage).latest()
        claim = claim_generation(
            storage, newest_seen=newest, world_size=world_size, resumed_from=latest
        )
        self.generation = claim.number

    def save(
        self,
        step: int,
        interfere: Interfere = lambda *_: None,
        *,
        with_participant: Callable[[BytesParticipant, str], None] | None = None,
        absent: frozenset[int] = frozenset(),
        patience: float = 5,
        deadline_seconds: float = 60,
    ) -> tuple[CheckpointId, list[BaseException | None]]:
        """One attempt by all ranks that are not absent; what each of them raised."""
        attempt = CheckpointId(step, self.generation, new_attempt())
        raised: list[BaseException | None] = [None] * self.world_size

        def run(rank: int) -> None:
            def meddle(name: str) -> None:
                interfere(rank, name)
                if with_participant is not None:
                    with_participant(participant, name)

            world = World(rank=rank, world_size=self.world_size)
            participant = BytesParticipant(
                self.storage, attempt, rank, self.world_size, bytes([rank]) * 100, meddle
            )
            barrier = CommitBarrier(
                self.store, world=world, scope=attempt.attempt, step=step, timeout_seconds=patience
            )
            try:
                one = Attempt(
                    participant,
                    id=attempt,
                    storage=self.storage,
                    barrier=barrier,
                    world=world,
                    timeline=Timeline(step),
                    deadline_seconds=deadline_seconds,
                )
                one.prepare()
                one.persist()
            except BaseException as error:  # noqa: BLE001  # looked at by the test
                raised[rank] = error

        threads = [
            threading.Thread(target=run, args=(rank,))
            for rank in range(self.world_size)
            if rank not in absent
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return attempt, raised


def objects_of(storage: Storage, attempt: CheckpointId) -> list[str]:
    return [info.key for info in storage.list(attempt.prefix)]


def test_a_save_commits_on_every_rank_and_verifies() -> None:
    storage = MemoryStorage()
    job = Job(storage)
    attempt, raised = job.save(10)
    assert raised == [None, None, None]
    assert Catalog(storage).latest() == attempt
    assert verify_checkpoint(storage, attempt) == []
    assert job.store.keys() == [], "nothing is left in the store"


def test_a_whole_plan_that_was_asked_for_arrives_as_it_was_given() -> None:
    storage = MemoryStorage()
    with_plans: list[list[bytes]] = []

    class Asking(BytesParticipant):
        """Wants whole plans at the first exchange."""

        def global_plan(self, local_plans: list[bytes]) -> list[bytes] | None:
            with_plans.append(local_plans)
            return None if len(with_plans) == 1 else super().global_plan(local_plans)

    job = Job(storage)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(globals(), "BytesParticipant", Asking)
        attempt, raised = job.save(10)
    assert raised == [None, None, None]
    assert len(with_plans) == 2
    assert verify_checkpoint(storage, attempt) == []


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("method", ["local_plan", "stage", "write"])
def test_a_failure_on_one_rank_aborts_on_all_and_names_it(rank: int, method: str) -> None:
    storage = MemoryStorage()
    job = Job(storage)
    job.save(10)

    def fail(at: int, name: str) -> None:
        if (at, name) == (rank, method):
            raise StorageFull("no space for shard", key="steps/x")

    attempt, raised = job.save(20, fail)
    assert [type(error) for error in raised] == [CommitAborted] * 3
    for error in raised:
        assert isinstance(error, CommitAborted)
        assert list(error.failures) == [rank]
        assert "no space for shard" in str(error)
    assert objects_of(storage, attempt) == [], "nothing is left of the attempt"
    latest = Catalog(storage).latest()
    assert latest is not None
    assert latest.step == 10

    retried, raised = job.save(20)
    assert raised == [None] * 3
    assert Catalog(storage).latest() == retried


@pytest.mark.parametrize("method", ["global_plan", "manifest"])
def test_a_failure_of_the_coordinator_reaches_all(method: str) -> None:
    job = Job(MemoryStorage())

    def fail(_: int, name: str) -> None:
        if name == method:
            raise RuntimeError("unforeseen")

    attempt, raised = job.save(10, fail)
    assert all(isinstance(error, CommitAborted) and "unforeseen" in str(error) for error in raised)
    assert objects_of(job.storage, attempt) == []


def test_an_internal_error_is_not_taken_for_a_failed_save() -> None:
    def fail(rank: int, name: str) -> None:
        if (rank, name) == (1, "write"):
            raise InternalError("an invariant broke")

    _, raised = Job(MemoryStorage()).save(10, fail)
    assert [type(error) for error in raised] == [InternalError] * 3


@pytest.mark.parametrize("absent", [frozenset({2}), frozenset({1, 2})])
def test_a_missing_rank_is_named_after_the_deadline(absent: frozenset[int]) -> None:
    _, raised = Job(MemoryStorage()).save(30, absent=absent, patience=1.0)
    names = ", ".join(map(str, sorted(absent)))
    assert isinstance(raised[0], CommitAborted)
    assert f"for rank{'s' if len(absent) > 1 else ''} {names} at step 30, phase plan" in str(
        raised[0]
    )


def test_waiting_for_a_training_loop_has_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = Attempt._alive

    def alive(attempt: Attempt) -> None:
        if asked and attempt._world.rank == 1:
            raise CommitAborted("long after the deadline")
        real(attempt)

    def come_late(participant: BytesParticipant, name: str) -> None:
        if name == "is_vouched_for" and participant.rank == 1:
            asked.append(name)
            participant.vouches = lambda: len(asked) == 3

    monkeypatch.setattr(Attempt, "_alive", alive)
    storage = MemoryStorage()
    attempt, raised = Job(storage).save(30, with_participant=come_late)
    assert raised == [None, None, None]
    assert len(asked) == 3
    assert Catalog(storage).latest() == attempt


def test_a_loop_that_another_process_waits_for_in_vain_aborts_the_save() -> None:
    store = MemoryStore()
    waiting, absent = (
        CommitBarrier(
            store,
            world=World(rank=rank, world_size=2),
            scope="x",
            step=4,
            timeout_seconds=0.05,
            is_awaited=lambda: True,
        )
        for rank in range(2)
    )
    assert waiting._wait("nothing", 1) is None
    with pytest.raises(CommitAborted, match="another rank waits for step 4"):
        absent.await_loop(lambda _: False)
    waiting.close()
    absent.close()
    assert store.keys() == []


def test_a_rank_that_dies_after_planning_is_named() -> None:
    def die(rank: int, name: str) -> None:
        if (rank, name) == (1, "write"):
            raise SystemExit  # as a killed process, it posts nothing

    _, raised = Job(MemoryStorage()).save(30, die, patience=1.0)
    assert isinstance(raised[1], SystemExit)
    for rank in (0, 2):
        assert isinstance(raised[rank], CommitAborted)
        assert "rank 1 at step 30, phase arrive" in str(raised[rank])


def test_a_silent_coordinator_is_named_and_nothing_is_committed() -> None:
    def die(rank: int, name: str) -> None:
        if (rank, name) == (0, "manifest"):
            raise SystemExit

    storage = MemoryStorage()
    attempt, raised = Job(storage).save(30, die, patience=1.0)
    for error in raised[1:]:
        assert isinstance(error, CommitOutcomeUnknown)
        assert "coordinator" in str(error)
    assert Catalog(storage).latest() is None
    assert objects_of(storage, attempt) != [], "it could still be published: nothing is removed"


class BadPublish(MemoryStorage):
    """Misbehaves when the manifest is created."""

    def __init__(self, behave: Callable[[MemoryStorage, str, Buffer], None]) -> None:
        super().__init__()
        self.behave = behave

    def create(self, key: str, data: Buffer) -> None:
        if key.endswith(MANIFEST):
            self.behave(self, key, data)
        else:
            super().create(key, data)


@pytest.mark.parametrize("kind", [ObjectExists, StorageUnavailable])
def test_a_publish_whose_reply_was_lost_is_a_commit(kind: type[Exception]) -> None:
    def lose_reply(storage: MemoryStorage, key: str, data: Buffer) -> None:
        MemoryStorage.create(storage, key, data)
        raise kind("the reply was lost")

    storage = BadPublish(lose_reply)
    attempt, raised = Job(storage).save(10)
    assert raised == [None] * 3
    assert Catalog(storage).latest() == attempt


def test_a_publish_that_may_still_land_is_unknown_and_keeps_its_objects() -> None:
    def lose_request(storage: MemoryStorage, key: str, data: Buffer) -> None:
        raise StorageUnavailable("timed out", key=key)

    storage = BadPublish(lose_request)
    attempt, raised = Job(storage).save(10)
    assert [type(error) for error in raised] == [CommitOutcomeUnknown] * 3
    assert len(objects_of(storage, attempt)) == 7
    assert Catalog(storage).latest() is None


def test_a_publish_that_was_refused_is_an_abort() -> None:
    def refuse(storage: MemoryStorage, key: str, data: Buffer) -> None:
        raise StorageFull("no space", key=key)

    storage = BadPublish(refuse)
    attempt, raised = Job(storage).save(10)
    assert [type(error) for error in raised] == [CommitAborted] * 3
    assert objects_of(storage, attempt) == []


def test_another_writer_under_our_name_is_an_internal_error() -> None:
    def usurp(storage: MemoryStorage, key: str, data: Buffer) -> None:
        storage.put(key, b"theirs")
        raise ObjectExists("taken", key=key)

    _, raised = Job(BadPublish(usurp)).save(10)
    assert [type(error) for error in raised] == [InternalError] * 3


def test_a_rank_that_writes_elsewhere_is_noticed_before_the_commit() -> None:
    """As on nodes that do not share the directory."""
    storage = MemoryStorage()
    job = Job(storage)

    def lose(rank: int, name: str) -> None:
        if (rank, name) == (0, "manifest"):
            (shard,) = (info.key for info in storage.list("steps/") if "__2_0" in info.key)
            storage.delete([shard])

    _, raised = job.save(10, lose)
    assert [type(error) for error in raised] == [CommitAborted] * 3
    assert "__2_0.distcp is not there" in str(raised[0])
    assert "Do all ranks share" in str(raised[0])
    assert Catalog(storage).latest() is None


def test_a_zombie_that_looks_before_it_publishes_is_fenced_and_publishes_nothing() -> None:
    storage = MemoryStorage()
    zombie = Job(storage)
    zombie.save(10)
    successor = Job(storage)
    attempt, raised = zombie.save(20)
    assert [type(error) for error in raised] == [FencedError] * 3
    assert attempt.key(MANIFEST) not in objects_of(storage, attempt)
    good, _ = successor.save(20)
    assert Catalog(storage).latest() == good


def test_late_commit_of_a_zombie_is_superseded() -> None:
    """The successor starts between the zombie's look and its publish: only the lineage can help."""

    successors: list[Job] = []
    storage = BadPublish(MemoryStorage.create)
    zombie = Job(storage)
    first, _ = zombie.save(10)

    def race(storage: MemoryStorage, key: str, data: Buffer) -> None:
        storage.behave = MemoryStorage.create  # type: ignore[attr-defined]
        successors.append(Job(storage))
        MemoryStorage.create(storage, key, data)

    storage.behave = race
    late, raised = zombie.save(20)
    assert [type(error) for error in raised] == [FencedError] * 3
    assert late.key(MANIFEST) in objects_of(storage, late), "it did land"
    statuses = {entry.id: entry.status for entry in Catalog(storage).entries()}
    assert statuses == {first: Status.COMMITTED, late: Status.SUPERSEDED}
    good, _ = successors[0].save(15)
    assert Catalog(storage).candidates() == [good, first]


def test_what_a_dead_attempt_posted_is_never_read() -> None:
    """The flaw of barriers keyed by step: the second try would count the first one's arrivals."""

    def die(*when: tuple[int, str]) -> Interfere:
        def interfere(rank: int, name: str) -> None:
            if (rank, name) in when:
                raise SystemExit  # as a killed process, it posts nothing

        return interfere

    storage = MemoryStorage()
    job = Job(storage)
    job.save(10, die((0, "write")), patience=1.0)
    left = job.store.keys()
    assert any("/arrive/post/1" in key for key in left), "rank 1 had arrived"
    _, raised = job.save(10, die((1, "write")), patience=1.0)
    assert isinstance(raised[0], CommitAborted)
    assert "rank 1 at step 10, phase arrive" in str(raised[0])
    assert Catalog(storage).latest() is None


class ListingFailsAfterPublish(MemoryStorage):
    """The look for a newer generation that follows the publish gets no answer."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        is_published = any(key.endswith(MANIFEST) for key in self._objects)
        if prefix == "generations/" and is_published:
            raise StorageUnavailable("timed out", key=prefix)
        return super().list(prefix)


def test_what_fails_after_the_publish_does_not_undo_the_commit() -> None:
    storage = ListingFailsAfterPublish()
    attempt, raised = Job(storage).save(10)
    assert raised == [None] * 3
    assert verify_checkpoint(storage, attempt) == [], "no object was removed"


def test_an_error_right_after_the_publish_does_not_undo_the_commit() -> None:
    storage = MemoryStorage()
    job = Job(storage)
    failpoints.arm("publish.after=raise", rank=0, restart_count=0)
    try:
        attempt, raised = job.save(10)
    finally:
        failpoints.disarm()
    assert raised == [None] * 3
    assert verify_checkpoint(storage, attempt) == []


@pytest.mark.parametrize("slow", [0, 2], ids=["coordinator", "other"])
def test_a_rank_that_writes_for_longer_than_the_timeout_is_waited_for(slow: int) -> None:
    """It gives signs of life; and all ranks hear the same outcome."""
    job = Job(MemoryStorage())

    def write_slowly(participant: BytesParticipant, name: str) -> None:
        if (participant.rank, name) == (slow, "write"):
            for _ in range(25):
                time.sleep(0.1)
                participant.alive()

    attempt, raised = job.save(10, with_participant=write_slowly, patience=1.0)
    assert raised == [None] * 3
    assert Catalog(job.storage).latest() == attempt


@pytest.mark.parametrize("method", ["write", "manifest"])
def test_a_rank_that_waits_for_the_store_for_longer_than_the_timeout_is_waited_for(
    method: str,
) -> None:
    def stall(rank: int, name: str) -> None:
        if rank == 0 and name == method:
            time.sleep(1.2)

    _, raised = Job(MemoryStorage()).save(10, stall, patience=0.4)
    assert raised == [None, None, None]


def test_a_rank_that_hangs_is_missed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keepstep.commit.protocol._PATIENCE_SECONDS", 0.2)

    def hang(rank: int, name: str) -> None:
        if rank == 1 and name == "write":
            time.sleep(2)

    storage = MemoryStorage()
    attempt, raised = Job(storage).save(10, hang, patience=0.4)
    assert "rank 1" in str(raised[0])
    assert isinstance(raised[0], CommitAborted)
    assert attempt.key(MANIFEST) not in objects_of(storage, attempt)


@pytest.mark.parametrize("slow", [0, 2])
def test_a_rank_that_is_still_writing_after_the_deadline_gives_the_save_up(slow: int) -> None:
    def write_slowly(participant: BytesParticipant, name: str) -> None:
        if participant.rank == slow and name == "write":
            for _ in range(10):
                time.sleep(0.1)
                participant.alive()

    storage = MemoryStorage()
    job = Job(storage)
    attempt, raised = job.save(10, with_participant=write_slowly, deadline_seconds=0.3)
    assert all(isinstance(error, CommitAborted) for error in raised)
    assert all("deadline" in str(error) and f"rank {slow}" in str(error) for error in raised)
    assert objects_of(storage, attempt) == []
    assert job.save(11)[1] == [None, None, None]


def test_phases_are_timed_in_order() -> None:
    timeline = Timeline(1)
    for phase in Phase:
        with timeline.phase(phase):
            pass
    assert list(timeline.seconds) == list(Phase)


def test_a_coordinator_that_gets_too_few_answers_ready_tells_all() -> None:
    store = MemoryStore()
    barriers = [
        CommitBarrier(
            store, world=World(rank=rank, world_size=2), scope="x", step=1, timeout_seconds=1
        )
        for rank in range(2)
    ]
    barriers[0].answer("plan", lambda: [b"only one"])
    for barrier in barriers:
        with pytest.raises(InternalError):
            barrier.await_answer("plan")


def test_no_answer_names_the_coordinator() -> None:
    barrier = CommitBarrier(
        MemoryStore(), world=World(rank=1, world_size=2), scope="x", step=4, timeout_seconds=0.05
    )
    with pytest.raises(BarrierTimeout, match=r"coordinator \(rank 0\) at step 4, phase depart"):
        barrier.await_answer("depart")


def test_who_will_be_stopped_soon_waits_for_the_silent_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keepstep.commit.barrier._HURRIED_SECONDS", 0.05)
    told = threading.Event()
    barrier = CommitBarrier(
        MemoryStore(),
        world=World(rank=1, world_size=2),
        scope="x",
        step=4,
        timeout_seconds=3600,
        is_hurried=told.is_set,
    )
    threading.Timer(0.1, told.set).start()
    with pytest.raises(BarrierTimeout, match=r"waited 0 s for the coordinator"):
        barrier.await_answer("depart")


class ShownTooEarly(MemoryStorage):
    """What was created can be read, and may not survive power loss."""

    asked: tuple[str, ...] = ()

    def create(self, key: str, data: Buffer) -> None:
        super().create(key, data)
        if key.endswith(MANIFEST):
            raise StorageUnavailable("the directory could not be synced", key=key)

    def make_durable(self, key: str) -> None:
        self.asked = (*self.asked, key)
        raise StorageUnavailable("it still cannot", key=key)


def test_nobody_reports_a_commit_that_can_be_read_and_may_not_survive() -> None:
    storage = ShownTooEarly()
    attempt, raised = Job(storage).save(10)
    assert [type(error) for error in raised] == [CommitOutcomeUnknown] * 3
    assert set(storage.asked) == {attempt.key(MANIFEST)}
    assert MANIFEST in [key.rpartition("/")[2] for key in objects_of(storage, attempt)], "it stays"


def test_ranks_that_are_silent_together_are_waited_for_together() -> None:
    store = MemoryStore()
    coordinator, alive = (
        CommitBarrier(
            store, world=World(rank=rank, world_size=32), scope="x", step=4, timeout_seconds=0.4
        )
        for rank in (0, 31)
    )
    store.set("x/alive/7", b"1")  # lived once
    coordinator.post("arrive", lambda: b"mine")
    began = time.monotonic()
    late = threading.Timer(0.8, alive.post, ["arrive", lambda: b"late"])
    late.start()
    with alive.kept_alive(60), pytest.raises(CommitAborted, match=r"for ranks 1, 2, .*, 30 at"):
        coordinator.collect("arrive")
    assert time.monotonic() - began < 4
    late.join()


def test_a_coordinator_that_plans_for_longer_than_the_timeout_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keepstep.commit.protocol._LONG_PLANS_BYTES", 1)

    def plan_long(rank: int, name: str) -> None:
        if (rank, name) == (0, "global_plan"):
            time.sleep(2.5)

    _, raised = Job(MemoryStorage()).save(30, plan_long, patience=1.0)
    assert raised == [None, None, None]
