"""One process group: a start, and ranks that save until they are through or somebody dies."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from keepstep.commit.barrier import CommitBarrier
from keepstep.commit.layout import CheckpointId, ledger_key
from keepstep.commit.lineage import Generation, claim_generation
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.commit.protocol import Attempt, Timeline
from keepstep.commit.pruning import Pruner
from keepstep.commit.starting import Start, announced_start
from keepstep.config import parse_keep
from keepstep.errors import (
    CommitAborted,
    CommitError,
    CoordinationError,
    CorruptCheckpointError,
    FencedError,
    KeepstepError,
    ObjectNotFound,
    StorageError,
)
from keepstep.phases import Phase
from keepstep.session.choosing import Chooser, all_damaged
from keepstep.session.results import Skipped
from keepstep.testing.simulation.actors import Process
from keepstep.testing.simulation.participant import SimulatedParticipant
from keepstep.testing.simulation.reading import read_states
from keepstep.testing.simulation.trunk import Trunk
from keepstep.world import World

if TYPE_CHECKING:
    from keepstep.testing.simulation.history import History

_TIMEOUT_SECONDS = 4.0
_FAILURES_ALLOWED = 2
STEPS_PER_SAVE = 10


class Job:
    """One start and what comes of it. Ranks are processes of their own.

    Args:
        number: Of this start among all; unlike its generation never another's.
    """

    def __init__(self, history: "History", number: int, *, world_size: int, saves: int) -> None:
        self.history = history
        self.number = number
        self.world_size = world_size
        self.saves = saves
        self.generation = 0
        self.nonce = ""
        self.trunk = Trunk()
        self.source: CheckpointId | None = None
        self.committed: set[CheckpointId] = set()
        self.is_broken = False
        """Whether a rank has died, is stopped, or gave up."""
        self.ranks_over = 0
        self.processes = [
            Process(f"job{number}.rank{rank}", "coordinator" if rank == 0 else "rank", job=self)
            for rank in range(world_size)
        ]
        self._pruner: Pruner | None = None
        self._is_pruning = False
        self._ledger = b""
        self._steps: dict[int, int] = {}

    @property
    def is_over(self) -> bool:
        """Whether no rank does anything any more."""
        return all(process.is_dead for process in self.processes) or (
            self.ranks_over == self.world_size
        )

    def begin(self) -> None:
        """Let the coordinator start; the other ranks follow once it has claimed a generation."""
        self.history.scheduler.spawn(self.processes[0], self._start_and_train, "start")

    def kill(self) -> None:
        """End all ranks where they are."""
        for process in self.processes:
            self.history.kill(process)

    def _start_and_train(self) -> None:
        try:
            self._start()
        except CorruptCheckpointError as error:
            if self.history.oracle.newest_good() is not None:
                self.history.violate(f"I4: job {self.number} finds nothing: {error}")
            self.ranks_over = self.world_size
        except (FencedError, StorageError, CoordinationError):
            self.ranks_over = self.world_size
        else:
            for rank in range(1, self.world_size):
                self.history.scheduler.spawn(self.processes[rank], partial(self._train, rank))
            self._train(0)
        self.history.scheduler.notify(self)

    def _start(self) -> None:
        """As ``session/resume.py`` does it, on the coordinator."""
        with self.announced() as start:
            expected = self.history.oracle.newest_good()
            self.source, states = self._load_first_good(start.newest_generation)
            claim = self.claim(start.newest_generation)
            self.generation, self.nonce = claim.number, claim.nonce
            self._check_source(expected)
        self.trunk = Trunk.of_state(states[0]) if states else Trunk()
        self._pruner = Pruner(self.history.storage, generation=self.generation)

    def announced(self) -> AbstractContextManager[Start]:
        """What keeps checkpoints from being removed meanwhile."""
        return announced_start(self.history.storage)

    def claim(self, newest_generation: int) -> Generation:
        """Make what was loaded the beginning of a generation."""
        return claim_generation(
            self.history.storage,
            newest_seen=newest_generation,
            world_size=self.world_size,
            resumed_from=self.source,
        )

    def _load_first_good(self, newest_generation: int) -> tuple[CheckpointId | None, list[bytes]]:
        storage = self.history.storage
        skipped: list[Skipped] = []
        chooser = Chooser(storage)
        for candidate in chooser.choose("auto").candidates:
            if skipped:
                skipped += chooser.set_aside_headless(above=candidate)
            try:
                states = read_states(storage, candidate)
            except (CorruptCheckpointError, ObjectNotFound) as error:
                skipped.append(Skipped(candidate, str(error)))
                chooser.set_aside(skipped[-1], newest_generation=newest_generation)
                continue
            self.history.oracle.loaded(candidate, states)
            return candidate, states
        if skipped:
            raise all_damaged(storage, skipped)
        return None, []

    def _check_source(self, expected: CheckpointId | None) -> None:
        """The newest that was good when the start began, or a newer one; and it says so."""
        oracle = self.history.oracle
        if oracle.claims.get(self.generation, self) != self.source:
            self.history.violate(
                f"I2: generation {self.generation} is trained from {self.source}; its claim says "
                f"{oracle.claims.get(self.generation, 'nothing')}"
            )
        if expected is None or expected in self.history.oracle.damaged:
            return
        if self.source is None or self.source < expected:
            self.history.violate(
                f"progress: job {self.number} resumes from {self.source}; there was {expected}"
            )

    def _train(self, rank: int) -> None:
        self.history.scheduler.current.activity = Phase.PLAN  # type: ignore[union-attr]
        try:
            failures = 0
            for number in range(1, self.saves + 1):
                has_committed = self._save(rank, self._step(number), number)
                failures = 0 if has_committed else failures + 1
                if failures == _FAILURES_ALLOWED:
                    break
        except (FencedError, CoordinationError, StorageError) as error:
            if isinstance(error, FencedError):
                self._check_fenced(error)
        self.ranks_over += 1
        self.is_broken = True  # the others would wait for it
        self.history.scheduler.notify(self)

    def _step(self, number: int) -> int:
        """Of that try; the same on all ranks. What has failed is tried again, or passed over."""
        if number not in self._steps:
            last = self._steps.get(number - 1) or (self.source.step if self.source else 0)
            is_again = number > 1 and self.number % 2 and not self._has_committed(last)
            self._steps[number] = last if is_again else last + STEPS_PER_SAVE
        return self._steps[number]

    def _has_committed(self, step: int) -> bool:
        return any(id.step == step for id in self.committed)

    def _save(self, rank: int, step: int, number: int) -> bool:
        history = self.history
        attempt = CheckpointId(step, self.generation, self.attempt_name(step, number))
        trunk = self.trunk.grown(self.number, step)
        participant = SimulatedParticipant(
            history.storage,
            attempt,
            rank=rank,
            world_size=self.world_size,
            state=trunk.state(rank),
            describe=lambda objects: self._manifest(attempt, objects),
        )
        history.oracle.intends(attempt, rank, participant.state, trunk)
        if rank == 0:
            history.saves += 1
        world = World(rank=rank, world_size=self.world_size)
        barrier = CommitBarrier(
            history.store,
            world=world,
            scope=self.scope(attempt),
            step=step,
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        one = Attempt(
            participant,
            id=attempt,
            storage=history.storage,
            barrier=barrier,
            world=world,
            timeline=_Noted(step, history),
        )
        try:
            one.prepare()
            one.persist()
        except CommitAborted:
            history.oracle.aborted_by(attempt, rank)
            return False
        except CommitError:
            return False
        history.oracle.committed(attempt, rank)
        self.committed.add(attempt)
        if rank == 0:
            self._note_commit(attempt)
        return True

    def scope(self, attempt: CheckpointId) -> str:
        """Where an attempt's keys lie in the process group's store."""
        return f"keepstep/{self.nonce}/{attempt.attempt}"

    def attempt_name(self, step: int, number: int) -> str:  # noqa: ARG002  # a mutant names by step
        """The same on all ranks, and no other try's."""
        return f"{number:04x}{self.nonce[:8]}"

    def _manifest(self, attempt: CheckpointId, objects: tuple[ObjectRecord, ...]) -> Manifest:
        step = attempt.step
        return Manifest(
            run="run",
            step=step,
            generation=attempt.generation,
            attempt=attempt.attempt,
            created=f"2026-01-01T{step // 3600:02}:{step // 60 % 60:02}:{step % 60:02}+00:00",
            keepstep_version="0",
            torch_version="0",
            world_size=self.world_size,
            objects=objects,
            metrics={"loss": abs(45 - step)},
        )

    def _note_commit(self, attempt: CheckpointId) -> None:
        history, storage = self.history, self.history.storage
        current = history.scheduler.current
        assert current is not None
        current.activity = "ledger"
        line = json.dumps({"event": "save", "checkpoint": attempt.name}).encode() + b"\n"
        self._ledger += line
        key = ledger_key(self.generation, 0)
        try:
            if storage.capabilities.append:
                with storage.open_appender(key) as log:
                    log.append(line)
            else:
                storage.put(f"{key.removesuffix('.jsonl')}/000001.jsonl", self._ledger)
        except StorageError:
            pass  # it is logged; the next line is the next chance
        current.activity = Phase.PLAN
        if not self._is_pruning and history.choose(3) == 0:
            self._is_pruning = True
            history.scheduler.spawn(self.processes[0], self._prune, "retention")

    def _prune(self) -> None:
        """As ``session/retention.py`` does it."""
        assert self._pruner is not None
        try:
            with self.history.pruning():
                self._pruner.prune(parse_keep(self.history.plan.keep))
        except (FencedError, CoordinationError, StorageError):
            pass
        finally:
            self._is_pruning = False

    def _check_fenced(self, error: KeepstepError) -> None:
        if max(self.history.oracle.claims, default=0) <= self.generation:
            self.history.violate(f"job {self.number} is fenced by nobody: {error}")


class _Noted(Timeline):
    """Tells the history which phase it is."""

    def __init__(self, step: int, history: "History") -> None:
        super().__init__(step)
        self._history = history

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        current = self._history.scheduler.current
        assert current is not None
        current.activity = phase
        with super().phase(phase):
            yield
