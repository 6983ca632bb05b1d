"""Saves, starts, prunes, pins and rollbacks in any order, killed or crossed by one another at any
request to the store: there is always something to resume from, and nothing looks damaged."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from keepstep.commit.blocks import fold_checksums, run_checksums, sha256_digest
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.index import RankIndex
from keepstep.commit.layout import (
    MANIFEST,
    METADATA,
    CheckpointId,
    index_filename,
    ledger_key,
    new_attempt,
    shard_filename,
)
from keepstep.commit.lineage import claim_generation, claims_on_line, valid_line
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.commit.pins import pin, unpin
from keepstep.commit.protocol import publish
from keepstep.commit.pruning import Pruner
from keepstep.commit.retention import COMMITTED_ONLY, Extent
from keepstep.commit.rollback import roll_back
from keepstep.commit.starting import announced_start
from keepstep.commit.verify import verify_checkpoint
from keepstep.config import parse_keep
from keepstep.errors import KeepstepError, StorageUnavailable
from keepstep.session.choosing import Chooser
from keepstep.session.results import Skipped
from keepstep.storage.base import Buffer, ObjectInfo
from keepstep.testing.memory_storage import MemoryStorage

POLICIES = ["all", "last=1", "last=2", "best=loss:min", "every=25steps", "tag=good", "every=1min"]


class Killed(BaseException):
    """What a killed process would have done next does not happen."""


@dataclass
class Process:
    """One process, and what befalls it at which of its requests."""

    at: int = -1
    befalls: Callable[[], None] = lambda: None
    requests: int = 0
    is_dead: bool = False


class Watched(MemoryStorage):
    """Every request passes the fate of the process that makes it, before and after its effect."""

    def __init__(self) -> None:
        super().__init__()
        self.process = Process()

    @contextmanager
    def process_of(self, process: Process) -> Iterator[None]:
        """What is done within is another process's work."""
        outer, self.process = self.process, process
        try:
            yield
        finally:
            self.process = outer

    def kill(self) -> None:
        self.process.is_dead = True

    def put(self, key: str, data: Buffer) -> None:
        self._pass()
        super().put(key, data)
        self._pass()

    def create(self, key: str, data: Buffer) -> None:
        self._pass()
        super().create(key, data)
        self._pass()

    def get(self, key: str) -> bytes:
        self._pass()
        return super().get(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._pass()
        return iter([*super().list(prefix)])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._pass()
            super().delete([key])
        self._pass()

    def _pass(self) -> None:
        process = self.process
        if process.requests == process.at:
            process.requests += 1
            process.befalls()
        process.requests += 1
        if process.is_dead:
            raise Killed


class Run(RuleBasedStateMachine):
    """A job, its successors, and people with a command line."""

    @initialize()
    def begin(self) -> None:
        self.storage = Watched()
        self.catalog = Catalog(self.storage)
        self.catalog.open_run()
        self.job: int | None = None
        self.step = 0
        self.published: list[CheckpointId] = []
        self.pinned: set[CheckpointId] = set()
        self.damaged: set[CheckpointId] = set()
        self.start()

    fates = st.sampled_from(["-", "kill", "fail", "start", "save", "prune", "roll_back", "pin"])
    moments = st.integers(0, 90)

    @rule(fate=fates, at=moments, tag=st.booleans())
    @precondition(lambda self: self.job is not None)
    def a_job_saves(self, fate: str, at: int, tag: bool) -> None:
        self._under(fate, at % 20, lambda: self.save(tags=("good",) if tag else ()))

    @rule(saves=st.integers(2, 6))
    def a_job_trains(self, saves: int) -> None:
        if self.job is None:
            self.start()
        for _ in range(saves):
            self._under("-", 0, lambda: self.save() if self.job is not None else None)

    @rule(fate=fates, at=moments)
    def a_job_starts(self, fate: str, at: int) -> None:
        self._under(fate, at, self.start)

    @rule(
        fate=fates,
        at=moments,
        keep=st.sampled_from(POLICIES),
        is_by_job=st.booleans(),
        extent=st.builds(Extent, st.booleans(), st.booleans()),
    )
    def somebody_prunes(
        self, fate: str, at: int, keep: str, is_by_job: bool, extent: Extent
    ) -> None:
        generation = self.job if is_by_job else None
        self._under(fate, at, lambda: self.prune(keep, extent, generation))

    @rule(fate=fates, at=moments, number=st.integers(0, 9))
    def somebody_rolls_back(self, fate: str, at: int, number: int) -> None:
        self._under(fate, at, lambda: self.roll_back(number))

    @rule(fate=fates, at=moments, number=st.integers(0, 9))
    def somebody_pins(self, fate: str, at: int, number: int) -> None:
        self._under(fate, at % 20, lambda: self.pin(number))

    @rule()
    @precondition(lambda self: self.pinned)
    def somebody_unpins(self) -> None:
        checkpoint = min(self.pinned)
        self.pinned.remove(checkpoint)
        unpin(self.storage, checkpoint)

    @rule()
    def the_newest_loses_an_object(self) -> None:
        whole = [id for id in self.catalog.candidates() if id not in self.damaged]
        source = self._newest_source()
        if len(whole) > 1 and whole[0] not in (self.pinned | {source}):
            self.damaged.add(whole[0])
            self.storage.delete([whole[0].key(shard_filename(0, 0))])

    @invariant()
    def there_is_something_to_resume_from(self) -> None:
        if self._has_progress():
            candidates = self.catalog.candidates()
            assert any(not verify_checkpoint(self.storage, id) for id in candidates)

    @invariant()
    def the_newest_generation_has_its_source(self) -> None:
        if (source := self._newest_source()) is not None:
            assert verify_checkpoint(self.storage, source) == []
            assert source in self.catalog.candidates()

    @invariant()
    def what_is_pinned_is_whole(self) -> None:
        for checkpoint in self.pinned:
            assert verify_checkpoint(self.storage, checkpoint) == []

    @invariant()
    def what_has_a_manifest_has_its_objects(self) -> None:
        keys = {info.key for info in self.storage.list("")}
        for key in sorted(keys):
            if key.endswith(MANIFEST):
                manifest = Manifest.from_bytes(self.storage.get(key), key)
                objects = {manifest.id.key(record.file) for record in manifest.objects}
                assert objects <= keys or manifest.id in self.damaged

    @invariant()
    def nothing_looks_damaged_that_is_not(self) -> None:
        Chooser(self.storage).set_aside_headless(above=None)
        for entry in self.catalog.entries():
            assert entry.status is not Status.QUARANTINED or entry.id in self.damaged, entry

    def save(self, tags: tuple[str, ...] = ()) -> None:
        """As the protocol does it; a process that finds itself fenced ends."""
        assert self.job is not None
        self.step += 10
        id = CheckpointId(self.step, self.job, new_attempt())
        data = b"state of %d" % self.step
        blocks = fold_checksums(shard_filename(0, 0), [run_checksums(0, data, 64)], 64)
        index = RankIndex(rank=0, frames=(), files=(blocks,)).to_bytes()
        objects = {METADATA: b"pickle", index_filename(0): index, shard_filename(0, 0): data}
        records = []
        for file, content in objects.items():
            self.storage.put(id.key(file), content)
            is_shard = file == shard_filename(0, 0)
            digest = blocks.digest if is_shard else sha256_digest(content)
            records.append(ObjectRecord(file, len(content), digest))
        manifest = Manifest(
            run=self.catalog.run()["run"],
            step=id.step,
            generation=id.generation,
            attempt=id.attempt,
            created=f"2026-01-01T00:{id.step // 10 % 60:02}:30+00:00",
            keepstep_version="0",
            torch_version="0",
            world_size=1,
            objects=tuple(records),
            metrics={"loss": abs(50 - id.step)},
            tags=tags,
        )
        job, self.job = self.job, None  # whatever happens to it now, this process ends with it
        publish(self.storage, manifest)
        self.job = job
        self.published.append(id)
        line = json.dumps({"event": "save", "checkpoint": id.name}) + "\n"
        with self.storage.open_appender(ledger_key(id.generation, 0)) as log:
            log.append(line.encode())

    def start(self) -> None:
        with announced_start(self.storage) as start:
            chooser, source, had_progress = Chooser(self.storage), None, self._has_progress()
            for candidate in chooser.choose("auto").candidates:
                damages = verify_checkpoint(self.storage, candidate)
                if not damages:
                    source = candidate
                    break
                chooser.set_aside(
                    Skipped(candidate, str(damages[0])), newest_generation=start.newest_generation
                )
            assert source is not None or not had_progress, "a silent fresh start"
            claim = claim_generation(
                self.storage,
                newest_seen=start.newest_generation,
                world_size=1,
                resumed_from=source,
            )
        self.job, self.step = claim.number, source.step if source else 0

    def prune(
        self,
        keep: str = "last=1",
        extent: Extent = COMMITTED_ONLY,
        generation: int | None = None,
    ) -> None:
        Pruner(self.storage, generation=generation).prune(parse_keep(keep), extent)

    def roll_back(self, number: int) -> None:
        with announced_start(self.storage) as start:
            heads = [
                entry.id
                for entry in self.catalog.entries()
                if entry.status in (Status.COMMITTED, Status.SUPERSEDED)
            ]
            if heads:
                roll_back(self.storage, heads[number % len(heads)], start)

    def pin(self, number: int) -> None:
        entries = self.catalog.entries()
        whole = [e.id for e in entries if e.has_manifest and e.id not in self.damaged]
        if whole:
            checkpoint = whole[number % len(whole)]
            pin(self.storage, checkpoint)
            self.pinned.add(checkpoint)

    def _under(self, fate: str, at: int, act: Callable[[], None]) -> Process:
        """Let a process act; a keepstep error is its end, and no harm."""
        others: dict[str, Callable[[], None]] = {
            "kill": self.storage.kill,
            "fail": self._fail,
            "start": self.start,
            "save": lambda: self.save() if self.job is not None else None,
            "prune": self.prune,
            "roll_back": lambda: self.roll_back(at),
            "pin": lambda: self.pin(at),
            "roll_back to the oldest": lambda: self.roll_back(0),
            "pin the oldest": lambda: self.pin(0),
            "prune and be killed": lambda: self._prune_and_be_killed(at),
        }

        def befall() -> None:
            if fate in ("kill", "fail"):
                others[fate]()
                return
            other, _, then = fate.partition(", ")
            with self.storage.process_of(Process()), suppress(KeepstepError):
                others[other]()
            if then == "then kill":
                process.at, process.befalls = process.requests + 1 + at % 5, self.storage.kill

        process = Process() if fate == "-" else Process(at, befall)
        with self.storage.process_of(process), suppress(Killed, KeepstepError):
            act()
        return process

    def _prune_and_be_killed(self, at: int) -> None:
        with self.storage.process_of(Process(at % 35, self.storage.kill)), suppress(Killed):
            self.prune()

    def _fail(self) -> None:
        raise StorageUnavailable("no answer")

    def _has_progress(self) -> bool:
        """Whether anything was committed that counts by the claims."""
        with self.storage.process_of(Process()):
            line = valid_line(claims_on_line(self.storage))
        last_steps = [(id.step, line.get(id.generation, -1)) for id in self.published]
        return any(last is None or step <= last for step, last in last_steps)

    def _newest_source(self) -> CheckpointId | None:
        claims = claims_on_line(self.storage)
        return claims[max(claims)].resumed_from if claims else None


ACTIONS: dict[str, Callable[[Run], None]] = {
    "start": Run.start,
    "save": Run.save,
    "prune": Run.prune,
    "roll back": lambda run: run.roll_back(0),
    "pin": lambda run: run.pin(0),
}


@pytest.mark.parametrize("newest_is_damaged", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "fate",
    [
        *("kill", "fail", "start", "save", "prune", "prune and be killed"),
        *("roll_back to the oldest", "pin the oldest", "roll_back to the oldest, then kill"),
    ],
)
@pytest.mark.parametrize("action", ACTIONS)
def test_whatever_befalls_an_action_at_whatever_moment(
    action: str, fate: str, newest_is_damaged: bool
) -> None:
    """A prune and a start then find what that has left."""
    for at in range(1000):
        run = Run()
        run.begin()
        run.a_job_trains(saves=4)
        if newest_is_damaged:
            run.the_newest_loses_an_object()
        process = run._under(fate, at, lambda run=run: ACTIONS[action](run))
        check_invariants(run)
        run._under("-", 0, run.prune)
        check_invariants(run)
        run._under("-", 0, run.start)
        check_invariants(run)
        if process.requests <= at:
            return
    pytest.fail("an action without an end")


def check_invariants(run: Run) -> None:
    run.there_is_something_to_resume_from()
    run.the_newest_generation_has_its_source()
    run.what_is_pinned_is_whole()
    run.what_has_a_manifest_has_its_objects()
    run.nothing_looks_damaged_that_is_not()


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Run,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_whatever_happens_there_is_something_to_resume_from_and_nothing_looks_damaged() -> None:
    run_machine(examples=30, steps=30)


@pytest.mark.long
def test_the_same_for_long() -> None:
    run_machine(examples=1500, steps=60)
