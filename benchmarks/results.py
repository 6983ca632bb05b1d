"""From the rows of all ranks to medians, and to the JSON that keeps them."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.launching import Launch
from benchmarks.scenario import Scenario, Section

_FORMAT = 1
Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over the counted repetitions, and in the one before them."""

    median: float
    lowest: float
    highest: float
    count: int
    first: float | None = None
    """Of the repetition that does not count: first saves allocate, plan and import."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of work of one peer in one scenario."""

    scenario: Scenario
    peer: str
    work: str
    metrics: dict[str, Spread]

    def median(self, metric: str) -> float | None:
        spread = self.metrics.get(metric)
        return spread.median if spread else None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a peer, or with an empty name a whole scenario, has no (more) figures."""

    scenario: Scenario
    peer: str
    reason: str


@dataclass(slots=True)
class Results:
    """Everything one run has measured."""

    machine: dict[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, launch: Launch) -> None:
        """Take in what a scenario's ranks wrote."""
        scenario = launch.scenario
        rows = [row for rank in launch.rows for row in rank]
        samples = _samples(scenario, launch.rows)
        for (peer, work), by_repetition in samples.items():
            is_soak = work == "soak"
            metrics = _soaked(by_repetition, scenario) if is_soak else _spreads(by_repetition)
            if metrics:
                self.entries.append(Entry(scenario, peer, work, metrics))
        reasons = dict.fromkeys((row["peer"], row["problem"]) for row in rows if "problem" in row)
        self.problems += [Problem(scenario, peer, reason) for peer, reason in reasons]
        if launch.failure:
            self.problems.append(Problem(scenario, "", launch.failure))

    def scenarios(self, *sections: Section) -> list[Scenario]:
        """Those with figures, in the order in which they ran."""
        found = dict.fromkeys(entry.scenario for entry in self.entries)
        return [scenario for scenario in found if not sections or scenario.section in sections]

    def entry(self, scenario: Scenario, peer: str, work: str) -> Entry | None:
        wanted = (scenario, peer, work)
        found = (e for e in self.entries if (e.scenario, e.peer, e.work) == wanted)
        return next(found, None)

    def median(self, scenario: Scenario, peer: str, work: str, metric: str) -> float | None:
        entry = self.entry(scenario, peer, work)
        return entry.median(metric) if entry else None

    def most(self, scenario: Scenario, peer: str, work: str, metric: str) -> float | None:
        """The median, or the repetition before the counted ones, where buffers are made."""
        entry = self.entry(scenario, peer, work)
        spread = entry.metrics.get(metric) if entry else None
        return max(spread.first or 0, spread.median) if spread else None

    @property
    def failures(self) -> list[Problem]:
        """Of keepstep: what ran, and went wrong."""
        return [
            problem
            for problem in self.problems
            if problem.peer.startswith("keepstep") and not problem.reason.startswith("skipped")
        ]

    def to_json(self) -> dict[str, Any]:
        """Scenario by scenario, with what was measured in it and why something was not."""
        with_problems = (problem.scenario for problem in self.problems)
        scenarios = [
            {
                "scenario": scenario.to_json(),
                "entries": [
                    {
                        "peer": entry.peer,
                        "work": entry.work,
                        "metrics": {name: asdict(s) for name, s in entry.metrics.items()},
                    }
                    for entry in self.entries
                    if entry.scenario == scenario
                ],
                "problems": [
                    {"peer": problem.peer, "reason": problem.reason}
                    for problem in self.problems
                    if problem.scenario == scenario
                ],
            }
            for scenario in dict.fromkeys([*self.scenarios(), *with_problems])
        ]
        return {"format": _FORMAT, "machine": self.machine, "scenarios": scenarios}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Results":
        """*Raises:* ``ValueError`` for another version's file."""
        if fields["format"] != _FORMAT:
            raise ValueError(f"the results have format {fields['format']}, not {_FORMAT}")
        results = cls(fields["machine"])
        for group in fields["scenarios"]:
            scenario = Scenario.from_json(group["scenario"])
            for entry in group["entries"]:
                metrics = {name: Spread(**spread) for name, spread in entry["metrics"].items()}
                results.entries.append(Entry(scenario, entry["peer"], entry["work"], metrics))
            for problem in group["problems"]:
                results.problems.append(Problem(scenario, problem["peer"], problem["reason"]))
        return results


def _samples(
    scenario: Scenario, rows: list[list[dict[str, Any]]]
) -> dict[tuple[str, str], dict[int, Sample]]:
    """By peer and work, then repetition: all ranks in one. Those that lack a rank are left out."""
    by_key: dict[tuple[str, str, int], list[Sample]] = defaultdict(list)
    local_bytes: list[float] = []
    for rank in rows:
        for row in rank:
            if row.get("work") == "state":
                local_bytes.append(row["metrics"]["local_bytes"])
            elif "work" in row:
                sample = {k: v for k, v in row["metrics"].items() if v is not None}
                by_key[row["peer"], row["work"], row["repetition"]].append(sample)
    samples: dict[tuple[str, str], dict[int, Sample]] = defaultdict(dict)
    for (peer, work, repetition), of_ranks in by_key.items():
        if len(of_ranks) == len(rows):
            combined = combine(of_ranks)
            combined |= _derived(scenario, work, combined, local_bytes)
            samples[peer, work][repetition] = combined
    return samples


def combine(of_ranks: list[Sample]) -> Sample:
    """Ranks into one: bytes, CPU time and counts add up, a clock is as late as the slowest."""
    combined: Sample = {}
    for name in of_ranks[0]:
        values = [sample[name] for sample in of_ranks if name in sample]
        if name.endswith("_bytes") or name in ("cpu_seconds", "threads", "file_descriptors"):
            combined[name] = sum(values)
        elif name.endswith("_per_second"):
            combined[name] = min(values)
        else:
            combined[name] = max(values)
    written = [sample.get("written_bytes", 0) for sample in of_ranks]
    if sum(written):
        combined["imbalance"] = max(written) * len(written) / sum(written)
    return combined


def _derived(scenario: Scenario, work: str, combined: Sample, local_bytes: list[float]) -> Sample:
    """Per byte of the state: what is saved once, or what all ranks together have to load."""
    needed = sum(local_bytes)
    if work in ("save", "async save") and scenario.strategy == "ddp":
        needed = max(local_bytes)
    derived: Sample = {"state_bytes": needed}
    if "cpu_seconds" in combined:
        derived["cpu_seconds_per_gb"] = combined["cpu_seconds"] / (needed / 1e9)
    if combined.get("seconds"):
        derived["gb_per_second"] = needed / 1e9 / combined["seconds"]
    if "read_bytes" in combined:
        derived["read_ratio"] = combined["read_bytes"] / needed
        if scenario.strategy == "ddp":
            derived["read_copies"] = combined["read_bytes"] / max(local_bytes)
    return derived


def _spreads(by_repetition: Mapping[int, Sample]) -> dict[str, Spread]:
    counted = [sample for repetition, sample in by_repetition.items() if repetition > 0]
    before = by_repetition.get(0, {})
    return {
        name: _spread([s[name] for s in counted if name in s], before.get(name))
        for name in dict.fromkeys(name for sample in counted for name in sample)
    }


def _soaked(by_save: Mapping[int, Sample], scenario: Scenario) -> dict[str, Spread]:
    """Over the marks; ``first`` is at the first mark, and growth from there to the last save."""
    marks = sorted(by_save)
    first, last = by_save[marks[0]], by_save[marks[-1]]
    metrics = {name: _spread([by_save[mark][name] for mark in marks], first[name]) for name in last}
    if marks[-1] == scenario.saves:
        for name in ("resident_bytes", "file_descriptors", "threads", "shared_memory_bytes"):
            metrics[f"{name}_growth"] = _spread([last[name] - first[name]], None)
    metrics["saves"] = _spread([marks[-1]], None)
    return metrics


def _spread(values: Iterable[float], first: float | None) -> Spread:
    values = [round(value, 6) for value in values]
    return Spread(round(statistics.median(values), 6), min(values), max(values), len(values), first)
