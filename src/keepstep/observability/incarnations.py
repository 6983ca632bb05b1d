"""The starts of a run, as their ledgers tell of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from keepstep.errors import InternalError
from keepstep.observability.ledger import END
from keepstep.observability.startup import Moments

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Incarnation:
    """One start of the process group, from its first sign of life to its last."""

    generation: int
    world_size: int
    resumed_step: int
    cause: str | None
    """Why it was started again, if the launcher told."""
    is_restart_of_workers: bool
    """Whether the launcher was there already; otherwise the job was submitted anew."""
    logs: Mapping[int, Sequence[Event]]
    """By rank, each in its own order."""
    furthest_before: int = 0
    """The furthest step that earlier generations have reached."""
    ticks: Sequence[tuple[float, int, int]] = field(default=())
    """Moment, step and samples of each step's end, by the coordinator."""

    @cached_property
    def first_sign(self) -> float:
        """When the first of its processes began, or a rendezvous on their behalf."""
        return min(self._first_sign(rank) for rank in self.logs)

    @cached_property
    def ended(self) -> float:
        """Its last sign of life."""
        return max(float(log[-1]["time"]) for log in self.logs.values())

    @property
    def last_step(self) -> int:
        """The furthest step that it has reached."""
        return max((step for _, step, _ in self.ticks), default=self.resumed_step)

    @property
    def stop(self) -> Event | None:
        """What it was stopped for, if it agreed to stop."""
        return next((event for event in self.events(0) if event["event"] == "stop"), None)

    @property
    def was_preempted(self) -> bool:
        return bool(self.stop and self.stop.get("is_preempted"))

    @property
    def has_ended_well(self) -> bool:
        """Whether the session was left without an error."""
        return any(event["event"] == END for event in self.events(0))

    @property
    def is_complete(self) -> bool:
        """Whether there was nothing left to do: no failure, and nobody told it to go."""
        return self.has_ended_well and not self.was_preempted

    def events(self, rank: int, name: str | None = None) -> list[Event]:
        """A rank's events, of one name or all."""
        log = self.logs.get(rank, ())
        return [event for event in log if name is None or event["event"] == name]

    def start(self, rank: int) -> Event | None:
        """What a rank told of its start; the coordinator's word stands in for a rank without."""
        return next(iter(self.events(rank, "start") or self.events(0, "start")), None)

    def before(self, rank: int) -> Mapping[str, Moments]:
        """What went before the session, by name."""
        start = self.start(rank)
        found = start.get("before", {}) if start else {}
        return {name: (float(began), float(ended)) for name, (began, ended) in found.items()}

    def _first_sign(self, rank: int) -> float:
        start = self.start(rank)
        spans = self.before(rank).values()
        known = [began for began, ended in spans if ended > began]
        return min([*known, float(start["opened"] if start else self.logs[rank][0]["time"])])


def incarnations(events: Iterable[Event]) -> list[Incarnation]:
    """All that have begun to train, or were about to; ascending.

    What one does after its successor has opened its session counts for nothing.
    """
    by_generation: dict[int, _Logs] = {}
    for event in events:
        logs = by_generation.setdefault(event["generation"], {})
        logs.setdefault(event["rank"], []).append(event)
    numbers = [n for n in sorted(by_generation) if _begun(by_generation[n]) is not None]
    found: list[Incarnation] = []
    furthest = 0
    for place, generation in enumerate(numbers):
        logs = by_generation[generation]
        if place + 1 < len(numbers):
            logs = _before(logs, _opened(by_generation[numbers[place + 1]]))
        one = _incarnation(generation, logs, furthest)
        furthest = max(furthest, one.last_step)
        found.append(one)
    return found


_Logs = dict[int, list[Event]]


def _begun(logs: _Logs) -> Event | None:
    """What the lowest rank that tells anything said when it was restored."""
    told = (event for rank in sorted(logs) for event in logs[rank])
    return next((event for event in told if event["event"] == "generation"), None)


def _incarnation(generation: int, logs: _Logs, furthest: int) -> Incarnation:
    begun = _begun(logs)
    if begun is None:
        raise InternalError(f"generation {generation} has not begun")
    return Incarnation(
        generation=generation,
        world_size=begun["world_size"],
        resumed_step=begun["step"],
        cause=begun.get("cause"),
        is_restart_of_workers=bool(begun.get("restart_count") or begun.get("cause")),
        logs=logs,
        furthest_before=furthest,
        ticks=tuple(
            (float(event["time"]), int(event["step"]), int(event.get("samples", 0)))
            for event in logs.get(0, ())
            if event["event"] == "step"
        ),
    )


def _before(logs: _Logs, moment: float) -> _Logs:
    """Without what came later; where clocks differ so much that no start is left, all of it."""
    kept = {
        rank: early
        for rank, log in logs.items()
        if (early := [event for event in log if event["time"] <= moment])
    }
    return logs if _begun(kept) is None else kept


def _opened(logs: _Logs) -> float:
    coordinator = logs.get(0, ())
    starts = [float(event["opened"]) for event in coordinator if event["event"] == "start"]
    return min(starts or [float(log[0]["time"]) for log in logs.values()])
