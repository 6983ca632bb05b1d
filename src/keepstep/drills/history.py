"""What happened, told from what a run has left: pure, so that an old record can be told again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from keepstep.commit.catalog import Status
from keepstep.commit.layout import CheckpointId
from keepstep.commit.lineage import Generation, valid_line
from keepstep.drills.remains import Checkpoint, Remains, TensorKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the history that counts: its last execution on the valid line."""

    number: int
    generation: int
    ids: tuple[int, ...]
    """Global sample ids in the global order."""
    losses: tuple[float, ...]
    """By slot: their mean is the global loss. Exact."""


@dataclass(frozen=True, slots=True)
class LiveState:
    """What one rank had in memory at a step, by its ledger."""

    step: int
    progress: Mapping[str, int]
    whole: Mapping[str, str]
    """Digests of tensors and values, by name, which the rank holds whole."""
    shards: Mapping[TensorKey, str]
    """Digests of the rank's parts of others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One incarnation of the job."""

    generation: int
    world_size: int
    resumed_from: CheckpointId | None
    reported: Mapping[int, str | None]
    """What each rank's ledger says it resumed from."""
    live_digests: Mapping[int, str | None]
    """Content digest of what each rank then found in its tensors."""
    states: Mapping[int, LiveState] = field(default_factory=dict)
    """By rank: what was in memory before the first step, where that was recorded."""
    first_step_ended: float | None
    """Unix seconds."""
    ended: float
    """Its last sign of life; 0 if its ledgers have none."""


@dataclass(frozen=True, slots=True)
class FailedSave:
    """A save that training was told has failed."""

    generation: int
    step: int
    is_survived: bool
    """Whether that incarnation made steps afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run, as a judge sees it."""

    steps: tuple[Step, ...]
    """Ascending."""
    checkpoints: tuple[Checkpoint, ...]
    """Ascending."""
    starts: tuple[Start, ...]
    saved: frozenset[CheckpointId] = frozenset()
    """What ranks knew to be committed, by their ledgers."""
    pruned: frozenset[CheckpointId] = frozenset()
    """What retention removed, by their ledgers."""
    failed_saves: tuple[FailedSave, ...] = ()

    @property
    def committed(self) -> tuple[Checkpoint, ...]:
        return tuple(c for c in self.checkpoints if c.status is Status.COMMITTED)

    @property
    def last(self) -> Checkpoint | None:
        """The newest checkpoint that counts."""
        return next(reversed(self.committed), None)

    def checkpoint(self, wanted: CheckpointId) -> Checkpoint | None:
        return next((c for c in self.checkpoints if c.id == wanted), None)

    def saved_before(self, generation: int) -> set[CheckpointId]:
        """What ranks of earlier generations knew to be committed."""
        return {id for id in self.saved if id.generation < generation}

    @property
    def recoveries_seconds(self) -> tuple[float, ...]:
        """From each job's last sign of life to its successor's first new step."""
        return tuple(
            after.first_step_ended - before.ended
            for before, after in pairwise(self.starts)
            # A zombie's last sign of life comes later; one that died at once may have given none.
            if after.first_step_ended is not None and 0 < before.ended < after.first_step_ended
        )


def tell(remains: Remains) -> History:
    """The history that counts."""
    claims = {claim.number: claim for claim in remains.claims}
    by_generation: dict[int, list[dict[str, Any]]] = {number: [] for number in claims}
    for event in remains.events:
        by_generation.setdefault(event["generation"], []).append(event)
    return History(
        steps=tuple(_effective_steps(remains.events, claims)),
        checkpoints=remains.checkpoints,
        starts=tuple(_start(claims[number], by_generation[number]) for number in claims),
        saved=frozenset(_saved(remains.events)),
        pruned=frozenset(_pruned(remains.events)),
        failed_saves=tuple(f for events in by_generation.values() for f in _failed_saves(events)),
    )


def _effective_steps(
    events: Iterable[dict[str, Any]], claims: Mapping[int, Generation]
) -> list[Step]:
    """Steps on the valid line. A step that a rank recorded twice there shows up twice."""
    line = valid_line(claims)
    by_step: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        number, generation = event.get("step", 0), event["generation"]
        last_step = line.get(generation, -1)
        if event["event"] == "samples" and (last_step is None or number <= last_step):
            by_step.setdefault((number, generation), []).append(event)
    return [
        _step(number, generation, by_step[number, generation])
        for number, generation in sorted(by_step)
    ]


def _step(number: int, generation: int, records: list[dict[str, Any]]) -> Step:
    ordered = sorted(records, key=lambda record: record["rank"])
    return Step(
        number=number,
        generation=generation,
        ids=tuple(id for record in ordered for id in record["ids"]),
        losses=tuple(float.fromhex(text) for record in ordered for text in record["losses_hex"]),
    )


def _start(claim: Generation, mine: Sequence[dict[str, Any]]) -> Start:
    begun = [event for event in mine if event["event"] == "generation"]
    steps = [event["time"] for event in mine if event["event"] == "step"]
    return Start(
        generation=claim.number,
        world_size=claim.world_size,
        resumed_from=claim.resumed_from,
        reported={event["rank"]: event["resumed_from"] for event in begun},
        live_digests={event["rank"]: event.get("state_digest") for event in begun},
        states={event["rank"]: _live_state(event) for event in mine if event["event"] == "state"},
        first_step_ended=min(steps, default=None),
        ended=max((event["time"] for event in mine), default=0.0),
    )


def _live_state(event: dict[str, Any]) -> LiveState:
    entries = event["entries"]
    return LiveState(
        step=event["step"],
        progress=event["progress"],
        whole={fqn: digest for fqn, offsets, digest in entries if offsets is None},
        shards={(fqn, tuple(o)): digest for fqn, o, digest in entries if o is not None},
    )


def _saved(events: Iterable[dict[str, Any]]) -> Iterator[CheckpointId]:
    for event in events:
        name = event["checkpoint"] if event["event"] == "save" else None
        if name and (id := CheckpointId.parse(name)):
            yield id


def _pruned(events: Iterable[dict[str, Any]]) -> Iterator[CheckpointId]:
    for event in events:
        for name in event["removed"] if event["event"] == "prune" else ():
            if id := CheckpointId.parse(name):
                yield id


def _failed_saves(events: Sequence[dict[str, Any]]) -> Iterator[FailedSave]:
    """Of one incarnation, as its coordinator tells."""
    last_step = max((e["step"] for e in events if e["event"] == "step"), default=0)
    for event in events:
        if event["event"] == "save_failed" and event["rank"] == 0:
            yield FailedSave(event["generation"], event["step"], last_step > event["step"])
