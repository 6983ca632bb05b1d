"""What a soak cost, told from its record."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

from keepstep.commit.lineage import valid_line
from keepstep.drills.history import tell
from keepstep.drills.record import Record
from keepstep.drills.remains import Remains
from keepstep.drills.results import Injection


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one soak."""

    faults: Mapping[str, int]
    """How many of each kind."""
    seconds: float
    generations: int
    steps: int
    """That count."""
    steps_run: int
    """With those that were run in vain."""
    goodput: float
    """Share of the time that went into steps that count."""
    recoveries_seconds: tuple[float, ...]
    """Ascending."""
    failed_saves: int

    def recovery_seconds(self, share: float) -> float:
        """A quantile of the recoveries; 0 if there was none."""
        if not self.recoveries_seconds:
            return 0.0
        return self.recoveries_seconds[max(0, ceil(share * len(self.recoveries_seconds)) - 1)]

    def lines(self) -> list[str]:
        """For people."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.faults.items())
        vain = self.steps_run - self.steps
        median, p95, longest = (self.recovery_seconds(share) for share in (0.5, 0.95, 1.0))
        return [
            f"faults    {sum(self.faults.values())}: {kinds}",
            f"work      {self.steps} steps, {vain} more in vain; {self.failed_saves} failed saves",
            f"goodput   {100 * self.goodput:.1f} % of {self.seconds:.0f} s",
            f"recovery  median {median:.1f} s, p95 {p95:.1f} s, max {longest:.1f} s",
        ]

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "faults": dict(self.faults),
            "seconds": round(self.seconds, 1),
            "generations": self.generations,
            "steps": self.steps,
            "steps_run": self.steps_run,
            "goodput": round(self.goodput, 4),
            "recovery_seconds": {
                name: round(self.recovery_seconds(share), 2)
                for name, share in (("median", 0.5), ("p95", 0.95), ("max", 1.0))
            },
            "failed_saves": self.failed_saves,
        }


def figures(record: Record) -> Figures | None:
    """``None`` for a drill that left nothing."""
    if record.remains is None:
        return None
    history = tell(record.remains)
    productive_seconds, steps_run = _productive(record.remains)
    kinds = Counter(map(_kind, record.injections))
    return Figures(
        faults=dict(kinds.most_common()),
        seconds=record.seconds,
        generations=len(history.starts),
        steps=len(history.steps),
        steps_run=steps_run,
        goodput=productive_seconds / record.seconds if record.seconds else 0.0,
        recoveries_seconds=tuple(sorted(history.recoveries_seconds)),
        failed_saves=len(history.failed_saves),
    )


def _kind(injection: Injection) -> str:
    """In a word: what a crash site raises says more than that it does."""
    if injection.kind == "raise":
        return injection.detail.split()[0]
    return "slow rank" if injection.kind == "sleep" else injection.kind


def _productive(remains: Remains) -> tuple[float, int]:
    """Seconds from step to step, where both count; and how many steps were run at all."""
    line = valid_line({claim.number: claim for claim in remains.claims})
    by_generation: dict[int, list[dict[str, Any]]] = {}
    for event in remains.events:
        if event["event"] == "step" and event["rank"] == 0:
            by_generation.setdefault(event["generation"], []).append(event)
    seconds = 0.0
    for generation, events in by_generation.items():
        last = line.get(generation, -1)
        for before, after in pairwise(events):
            if last is None or after["step"] <= last:
                seconds += after["time"] - before["time"]
    return seconds, sum(map(len, by_generation.values()))
