"""Whether the workers of this node are well: what the agent's monitor sees, for a probe."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from keepstep.elastic.watchdog import FIRST_STEP, INIT, LOAD
from keepstep.launch.monitor import Sight

_BEFORE_STEPS = frozenset({"", INIT, LOAD, FIRST_STEP})


@dataclass(frozen=True, slots=True, kw_only=True)
class RankHealth:
    """How one worker is. Times in seconds."""

    rank: int
    healthy: bool
    section: str
    """What it is doing; empty before its first word, and where nothing is expected."""
    step: int | None
    """The last one that it has completed."""
    lasts_seconds: float
    """How long it has been doing that."""
    allowed_seconds: float | None
    """How long that may take, if there is a limit."""
    ended: bool


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """How all of them are."""

    ranks: tuple[RankHealth, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether no worker is over the deadline of its section.

        Also where there is none: its agent waits for others, or starts it again.
        """
        return all(rank.healthy for rank in self.ranks)

    @property
    def is_ready(self) -> bool:
        """Whether there are workers, and all have come to their first step."""
        return bool(self.ranks) and all(r.section not in _BEFORE_STEPS for r in self.ranks)

    def document(self) -> dict[str, object]:
        """As JSON has it; the unhealthy first."""
        ranks = sorted(self.ranks, key=lambda rank: (rank.healthy, rank.rank))
        return {
            "healthy": self.is_healthy,
            "ready": self.is_ready,
            "ranks": [asdict(rank) for rank in ranks],
        }


def health_of(sights: Mapping[int, Sight]) -> NodeHealth:
    """By what the monitor has seen a moment ago, against the clock now."""
    now = time.monotonic_ns()
    return NodeHealth(tuple(_rank_health(rank, sight, now) for rank, sight in sights.items()))


def _rank_health(rank: int, sight: Sight, now: int) -> RankHealth:
    beat, ended = sight.beat, sight.ended_ns is not None
    if beat is None:
        return RankHealth(
            rank=rank,
            healthy=True,
            section="",
            step=None,
            lasts_seconds=0.0,
            allowed_seconds=None,
            ended=ended,
        )
    deadline = beat.deadline_ns
    return RankHealth(
        rank=rank,
        healthy=ended or not deadline or now <= deadline,
        section=beat.section,
        step=beat.step,
        lasts_seconds=round((now - beat.since_ns) / 1e9, 3),
        allowed_seconds=round((deadline - beat.since_ns) / 1e9, 3) if deadline else None,
        ended=ended,
    )
