"""A node's metrics, in the terms of Prometheus: docs/metrics.md has the table.

What concerns the whole job is counted on the node of rank 0 alone: nodes may be added up.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from keepstep.launch.health import NodeHealth, RankHealth
from keepstep.launch.tally import Reading
from keepstep.observability.counters import BOUND, BUCKETS_SECONDS
from keepstep.observability.numbers import SECTION_NS

_GAUGES = (
    ("step", "step", "Optimizer steps completed by the run."),
    ("generation", "generation", "Incarnation of the run's process group."),
    ("world_size", "world_size", "Ranks of the job."),
    ("nodes", "nodes", "Nodes of the job."),
    ("last_committed_step", "committed_step", "Step of the newest committed checkpoint."),
    (
        "last_commit_timestamp_seconds",
        "committed_at",
        "When this incarnation has last seen a step committed, in Unix time.",
    ),
    ("checkpoint_bytes", "checkpoint_bytes", "Size of the newest checkpoint."),
    (
        "checkpoint_interval_seconds",
        "interval_seconds",
        "Time from one save to the next; 0 where it goes by steps.",
    ),
    (
        "checkpoint_interval_steps",
        "interval_steps",
        "Steps from one save to the next; 0 where it goes by time.",
    ),
    ("failed_saves_in_a_row", "failed_saves", "Saves that have failed since the last commit."),
)
"""Name, name in a worker's numbers, help. All ranks have the same, or one lags a little."""

_COUNTERS = (
    ("steps", "steps", "Steps trained, those done again included."),
    ("samples", "samples", "Samples trained on, those done again included."),
    ("tokens", "tokens", "Tokens trained on, those done again included."),
    ("saves", "saves", "Saves, by outcome, in the words of the log."),
    ("committed_bytes", "committed_bytes", "Bytes of committed checkpoints."),
    ("lost_steps", "lost_steps", "Steps that restarts have to do again."),
    (
        "quarantined_checkpoints",
        "quarantined",
        "Checkpoints that were found damaged, or that killed every start, and were set aside.",
    ),
    ("storage_retries", "storage_retries", "Requests that were repeated."),
    ("storage_errors", "storage_errors", "What the store has failed to do, retries and all."),
)
_KNOWN = {
    "saves": ("outcome", ("committed", "skipped", "CommitAborted", "CommitOutcomeUnknown")),
    "storage_errors": ("kind", ("StorageUnavailable", "StorageFull", "StorageDenied")),
}
"""Values of labels that are there from the beginning, with 0: the first of them is a rise, too."""

_SECONDS = (
    ("section_seconds", SECTION_NS, "Time of all ranks, by what they were doing."),
    ("lost_seconds", "lost_ns", "Training time of one rank that restarts have to spend again."),
)
"""Name, name of a count of nanoseconds, help."""

_SAVE_PHASE = "save_phase"


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a node's agent knows, at one moment."""

    reading: Reading
    health: NodeHealth
    restarts: dict[str, int]
    """By cause."""
    tries_in_vain: int
    tries_allowed: int


class NodeCollector(Collector):
    """Answers each scrape by a fresh look. *Ranks:* one a node."""

    def __init__(self, look: Callable[[], NodeState]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        return families(self._look())

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registering does not look


def families(state: NodeState) -> Iterator[Metric]:
    """All metrics of a node."""
    reading = state.reading
    for name, key, text in _GAUGES:
        values = [
            numbers.gauges[key] for numbers in reading.ranks.values() if key in numbers.gauges
        ]
        if values:
            yield GaugeMetricFamily(f"keepstep_{name}", text, value=max(values))
    yield _training_metrics(reading)
    yield _at_risk(state)
    for name, key, text in _COUNTERS:
        yield _counter(reading, name, key, text)
    for name, key, text in _SECONDS:
        yield _counter(reading, name, key, text, divisor=1e9)
    yield _save_phases(reading)
    yield from _ranks(state.health)
    yield from _restarts(state)


def _training_metrics(reading: Reading) -> Metric:
    text = "What the loop has measured last, such as its loss."
    family = GaugeMetricFamily("keepstep_training_metric", text, labels=["name"])
    for numbers in reading.ranks.values():
        for name, value in numbers.metrics.items():
            family.add_metric([name], value)
    return family


def _at_risk(state: NodeState) -> Metric:
    """By this machine's monotonic clock, which its workers share."""
    now = time.monotonic_ns()
    begun = [n.gauges.get("at_risk_since_ns", now) for n in state.reading.ranks.values()]
    return GaugeMetricFamily(
        "keepstep_work_at_risk_seconds",
        "Time since the last committed step was left, or training began: lost by a crash now.",
        value=(now - min(begun, default=now)) / 1e9,
    )


def _counter(reading: Reading, name: str, key: str, text: str, *, divisor: float = 1) -> Metric:
    found = {labels: n for (one, labels), n in reading.counts.items() if one == key}
    label, values = _KNOWN.get(key, ("", ()))
    found = {((label, value),): 0 for value in values} | found
    names = sorted({label for labels in found for label, _ in labels})
    family = CounterMetricFamily(f"keepstep_{name}", text, labels=names)
    for labels, n in found.items() or [((), 0)]:
        by_label = dict(labels)
        family.add_metric([by_label.get(label, "") for label in names], n / divisor)
    return family


def _save_phases(reading: Reading) -> Metric:
    text = "How long each phase of a save took, on each rank."
    family = HistogramMetricFamily("keepstep_save_phase_seconds", text, labels=["phase"])
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for (name, labels), n in reading.counts.items():
        if name == _SAVE_PHASE:
            values = dict(labels)
            found[values["phase"]][values[BOUND]] = n
    for phase, by_bound in found.items():
        spent_ns = reading.counts[f"{_SAVE_PHASE}_ns", (("phase", phase),)]
        family.add_metric([phase], _cumulative(by_bound), spent_ns / 1e9)
    return family


def _cumulative(by_bound: dict[str, int]) -> list[tuple[str, float]]:
    buckets, total = [], 0
    for bound in (*map(str, BUCKETS_SECONDS), "+Inf"):
        total += by_bound.get(bound, 0)
        buckets.append((bound, float(total)))
    return buckets


def _ranks(health: NodeHealth) -> Iterator[Metric]:
    def by_rank(name: str, text: str, value: Callable[[RankHealth], float | None]) -> Metric:
        family = GaugeMetricFamily(f"keepstep_rank_{name}", text, labels=["rank"])
        for rank in health.ranks:
            if (number := value(rank)) is not None and not rank.ended:
                family.add_metric([str(rank.rank)], number)
        return family

    yield GaugeMetricFamily(
        "keepstep_node_healthy",
        "1 unless a rank of this node is over its deadline: as /healthz.",
        value=health.is_healthy,
    )
    yield by_rank("healthy", "1 unless the rank is over its deadline.", lambda r: r.healthy)
    yield by_rank(
        "heartbeat_age_seconds",
        "How long the rank has been in its section, or in this step.",
        lambda rank: rank.lasts_seconds,
    )
    yield by_rank("allowed_seconds", "How long that may take.", lambda rank: rank.allowed_seconds)


def _restarts(state: NodeState) -> Iterator[Metric]:
    text = "Restarts of this node's workers, by cause."
    restarts = CounterMetricFamily("keepstep_restarts", text, labels=["cause"])
    for cause, n in state.restarts.items():
        restarts.add_metric([cause], n)
    yield restarts
    yield GaugeMetricFamily(
        "keepstep_tries_in_vain",
        "Incarnations in a row that failed without a new commit.",
        value=state.tries_in_vain,
    )
    yield GaugeMetricFamily(
        "keepstep_tries_allowed",
        "How many there may be; then the job ends with 93.",
        value=state.tries_allowed,
    )
