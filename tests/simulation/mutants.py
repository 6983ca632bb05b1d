"""Broken protocols: each does one thing wrong that some line of the real one does right."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest.mock import patch

from keepstep.commit import catalog, lineage, protocol, pruning, starting, verified
from keepstep.commit.barrier import CommitBarrier
from keepstep.commit.layout import MANIFEST, CheckpointId
from keepstep.commit.lineage import Generation, list_generations
from keepstep.commit.protocol import Attempt
from keepstep.commit.pruning import Pruner
from keepstep.errors import CommitAborted, FencedError, StorageError
from keepstep.phases import Phase
from keepstep.testing.simulation.history import History
from keepstep.testing.simulation.job import Job
from keepstep.testing.simulation.participant import SimulatedParticipant
from keepstep.testing.simulation.plan import Plan
from keepstep.testing.simulation.storage import SimulatedStorage


@dataclass(frozen=True)
class Mutant:
    """One way to be wrong."""

    name: str
    patches: Sequence[Callable[[], AbstractContextManager[Any]]] = ()
    make_job: type[Job] = Job
    make_storage: type[SimulatedStorage] = SimulatedStorage
    first_seed: int = 0
    """Where the quick test begins: races are rare."""

    def run(self, plan: Plan) -> str | None:
        """The first thing that must not be, in one history."""
        with ExitStack() as stack:
            for enter in self.patches:
                stack.enter_context(enter())
            history = History(plan, make_job=self.make_job, make_storage=self.make_storage)
            return next(iter(history.run().violations), None)


def replaced(owner: Any, name: str, substitute: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: patch.object(owner, name, substitute)


class LazyStorage(SimulatedStorage):
    """Returns before anything is durable."""

    def _write(self, operation: str, key: str, act: Callable[[], None]) -> None:
        self.media.sync = lambda key: None  # type: ignore[method-assign]
        super()._write(operation, key, act)


class OverwritingStorage(SimulatedStorage):
    """Creates by replacing what is there."""

    def create(self, key: str, data: Any) -> None:
        self.put(key, data)


class PathKeyedJob(Job):
    """Ranks meet under the name of the step, whoever tries it."""

    def scope(self, attempt: CheckpointId) -> str:
        return f"keepstep/{attempt.step}"


class StepNamedJob(Job):
    """Attempts at a step share a name."""

    def attempt_name(self, step: int, number: int) -> str:
        return f"{step:012x}"


class UnclaimedJob(Job):
    """Counts generations without claiming them."""

    def claim(self, newest_generation: int) -> Generation:
        return Generation(newest_generation + 1, f"{self.number:032x}", 1, "", None)


class HastyJob(Job):
    """Claims a generation, from what it means to load, before it has loaded it."""

    def _load_first_good(self, newest_generation: int) -> Any:
        candidates = catalog.Catalog(self.history.storage).candidates()
        self.source = candidates[0] if candidates else None
        self.claimed = super().claim(newest_generation)
        return super()._load_first_good(newest_generation + 1)

    def claim(self, newest_generation: int) -> Generation:
        return self.claimed


class AmnesiacJob(Job):
    """Claims without saying what it resumed from."""

    def claim(self, newest_generation: int) -> Generation:
        source, self.source = self.source, None
        try:
            return super().claim(newest_generation)
        finally:
            self.source = source


class GreedyJob(Job):
    """Takes a claim that is there already for its own."""

    def claim(self, newest_generation: int) -> Generation:
        try:
            return super().claim(newest_generation)
        except FencedError:
            return lineage.read_generation(self.history.storage, newest_generation + 1)


class UnannouncedJob(Job):
    """Looks for checkpoints without telling those who remove some."""

    @contextmanager
    def announced(self) -> Iterator[starting.Start]:
        newest = max(list_generations(self.history.storage), default=0)
        yield starting.Start("starting/none", newest)


def _collect_without_waiting(self: CommitBarrier, topic: str) -> list[bytes]:
    if topic != Phase.ARRIVE:
        return _collect(self, topic)
    return [
        SimulatedParticipant.record(one, one.index())  # type: ignore[arg-type]
        for one in _Peers.of(self)
    ]


_collect = CommitBarrier.collect


class _Peers:
    """What all ranks are about to write, known without asking them."""

    participants: ClassVar[dict[str, dict[int, SimulatedParticipant]]] = {}

    @classmethod
    def of(cls, barrier: CommitBarrier) -> list[SimulatedParticipant]:
        found = cls.participants[barrier._scope.rpartition("/")[2]]
        return [found[rank] for rank in range(barrier._world.world_size)]


_init = SimulatedParticipant.__init__


def _init_noted(self: SimulatedParticipant, *args: Any, **named: Any) -> None:
    _init(self, *args, **named)
    if self.rank == 0 and len(_Peers.participants) > 50:
        _Peers.participants.clear()
    peers = _Peers.participants.setdefault(self.attempt.attempt, {})
    peers[self.rank] = self
    for rank in range(self.world_size):  # the same for all but the first word of the state
        if rank not in peers or peers[rank].attempt != self.attempt:
            other = SimulatedParticipant.__new__(SimulatedParticipant)
            other.__dict__.update(self.__dict__, rank=rank, written=[])
            other.state = self.state.replace(b"rank %d " % self.rank, b"rank %d " % rank, 1)
            peers[rank] = other


def _persist_manifest_first(self: Attempt) -> None:
    if self._world.is_coordinator:
        records = [p.record(p.index()) for p in _Peers.of(self._barrier)]
        try:
            protocol.publish(self._storage, self._participant.manifest(records))
        except StorageError as error:
            raise CommitAborted(str(error)) from error
        self._conclude = lambda: b"committed"  # type: ignore[method-assign]
    _persist(self)


_persist = Attempt.persist


def _settle_as_failure(storage: Any, key: str, data: bytes, error: StorageError) -> None:
    raise CommitAborted("the manifest was not created") from error


def _publish_over_anything(storage: Any, key: str, data: bytes, error: StorageError) -> None:
    """A create that failed counts as done."""


def _unfenced(storage: Any, generation: int) -> None:
    pass


def _whole_line(claims: Any) -> dict[int, int | None]:
    return dict.fromkeys(range(max(claims, default=0) + 1))


def _entries_by_directory(self: catalog.Catalog) -> Any:
    entries = _entries(self)
    return [
        catalog.Entry(e.id, catalog.Status.COMMITTED)
        if e.status is catalog.Status.UNCOMMITTED
        else e
        for e in entries
    ]


_entries = catalog.Catalog.entries


def _plan_by_directory_count(self: Pruner, policy: Any, extent: Any = None) -> Any:
    """Keeps the newest directories, whatever is in them."""
    found = _plan(self, policy)
    ids = sorted({decision.id for decision in found.decisions})
    decisions = [
        pruning.Decision(d.id, d.status, d.id in ids[-2:], ("counted",), None)
        for d in found.decisions
    ]
    return pruning.Plan(tuple(decisions), found.leftovers, found.surroundings)


_plan = Pruner.plan


def _decide_without_source(candidates: Any, policy: Any, protected: Any, **named: Any) -> Any:
    others = {
        id: kept
        for id, reasons in protected.items()
        if (kept := [reason for reason in reasons if "resumed from" not in reason])
    }
    return _decide(candidates, policy, others, **named)


_decide = pruning.plan_retention


def _condemn_without_looking(self: Pruner, doomed: Any, surroundings: Any) -> bool:
    for id in doomed:
        self._storage.put(pruning.pruned_key(id, pruning.new_attempt()), b"")
    return True


def _condemn_without_marks(self: Pruner, doomed: Any, surroundings: Any) -> bool:
    return bool(self._surroundings() == surroundings)


def _carry_out_objects_first(self: Pruner, plan: Any) -> bool:
    doomed = [d.id for d in plan.removed if d.status is not catalog.Status.UNCOMMITTED]
    if plan.surroundings.starts or not self._condemn(doomed, plan.surroundings):
        return False
    for id in doomed:
        keys = [info.key for info in self._storage.list(id.prefix)]
        self._storage.delete([key for key in keys if not key.endswith(MANIFEST)])
    return _carry_out(self, plan)


_carry_out = Pruner._carry_out


def _examine_nothing(self: verified.VerifiedFile, numbers: range, buffer: memoryview) -> Any:
    start = numbers.start * self.blocks.block_bytes
    return verified.BlocksRead(self._reader.read_into(start, buffer))


def _never_commits(*_: Any) -> bool:
    return False


def _settles_nothing(storage: Any, attempt: CheckpointId) -> bool:
    return False


MUTANTS = (
    Mutant(
        "no barrier",
        (
            replaced(CommitBarrier, "collect", _collect_without_waiting),
            replaced(protocol, "_check_objects", lambda *_: None),
            replaced(SimulatedParticipant, "__init__", _init_noted),
        ),
    ),
    Mutant("a barrier named after the step", make_job=PathKeyedJob),
    Mutant(
        "manifest before data",
        (
            replaced(Attempt, "persist", _persist_manifest_first),
            replaced(protocol, "_check_objects", lambda *_: None),
            replaced(SimulatedParticipant, "__init__", _init_noted),
        ),
    ),
    Mutant("no fsync", make_storage=LazyStorage),
    Mutant("overwrite instead of exclusive create", make_storage=OverwritingStorage),
    Mutant("attempts named after the step", make_job=StepNamedJob),
    Mutant("retention by directory count", (replaced(Pruner, "plan", _plan_by_directory_count),)),
    Mutant("fencing without a claim", make_job=UnclaimedJob),
    Mutant("claim before load", make_job=HastyJob),
    Mutant("a claim that does not say what it resumed from", make_job=AmnesiacJob),
    Mutant(
        "a line that ignores what was resumed from",
        (replaced(catalog, "valid_line", _whole_line),),
        first_seed=170,
    ),
    Mutant(
        "no look for newer generations at all",
        (replaced(protocol, "check_not_fenced", _unfenced),),
        first_seed=880,
    ),
    Mutant("412 to a claim taken for success", make_job=GreedyJob),
    Mutant(
        "lost reply to a publish taken for failure",
        (
            replaced(protocol, "_settle", _settle_as_failure),
            replaced(protocol, "_is_published", _settles_nothing),
        ),
    ),
    Mutant(
        "lost reply to a publish taken for success",
        (replaced(protocol, "_settle", _publish_over_anything),),
    ),
    Mutant(
        "prune blind to starts",
        (replaced(pruning, "starts_under_way", lambda _: ()),),
        first_seed=110,
    ),
    Mutant("a start that is not announced", make_job=UnannouncedJob, first_seed=510),
    Mutant(
        "prune of the resume source", (replaced(pruning, "plan_retention", _decide_without_source),)
    ),
    Mutant(
        "prune that does not look again",
        (replaced(Pruner, "_condemn", _condemn_without_looking),),
        first_seed=310,
    ),
    Mutant(
        "prune without marks",
        (replaced(Pruner, "_condemn", _condemn_without_marks),),
        first_seed=150,
    ),
    Mutant(
        "prune of objects before manifests",
        (replaced(Pruner, "_carry_out", _carry_out_objects_first),),
    ),
    Mutant(
        "a reader that trusts directories",
        (replaced(catalog.Catalog, "entries", _entries_by_directory),),
    ),
    Mutant(
        "checksums not verified",
        (replaced(verified.VerifiedFile, "examine", _examine_nothing),),
    ),
    Mutant(
        "gc of running attempts",
        (replaced(pruning, "_may_commit", _never_commits),),
        first_seed=130,
    ),
)
