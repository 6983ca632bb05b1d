"""What became of the time that processes were there for, and what each restart has cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from keepstep.observability.spans import Cause, Span
from keepstep.observability.timeline import Episode
from keepstep.observability.work import STALL

_AWAY = (
    *(Cause.UNKNOWN, Cause.DOWN, Cause.WAITING),
    *(Cause.RENDEZVOUS, Cause.STARTUP, Cause.RESTORE),
)
"""In the order in which they come between two lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """All time of all processes, split by cause. Process-seconds."""

    wall_seconds: float
    process_seconds: float
    by_cause: Mapping[Cause, float]

    @property
    def productive_seconds(self) -> float:
        return self.by_cause[Cause.PRODUCTIVE]

    @property
    def goodput(self) -> float:
        """Productive time, as a part of the time that there were nodes to train on."""
        return _part(self.productive_seconds, self.process_seconds - self.by_cause[Cause.WAITING])

    @property
    def ettr(self) -> float:
        """Effective training time ratio: the same as a part of all time, waiting included."""
        return _part(self.productive_seconds, self.process_seconds)

    def part(self, cause: Cause) -> float:
        """Of all time."""
        return _part(self.by_cause[cause], self.process_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """A failure or a departure, and what it took to be back where the run had been."""

    generation: int
    """The one that was started."""
    at: float
    """The last sign of life of the one before, in Unix seconds."""
    cause: str
    was_announced: bool
    """Whether the ranks were told to go, and left in good order."""
    world_size: int
    reached_step: int
    resumed_step: int
    lost_samples: int
    by_cause: Mapping[Cause, float]
    """Seconds until training goes on, and those of work done again, averaged over ranks."""

    @property
    def lost_steps(self) -> int:
        return self.reached_step - self.resumed_step

    @property
    def recovery_seconds(self) -> float:
        """Until the first step begins."""
        return sum(self.by_cause.values()) - self.by_cause[Cause.REDO]

    @property
    def seconds(self) -> float:
        """Until the run is where it had been."""
        return sum(self.by_cause.values())

    @property
    def process_seconds(self) -> float:
        return self.seconds * self.world_size

    def cost(self, price: float) -> float:
        """``price``: of a process-hour."""
        return self.process_seconds / 3600 * price


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCosts:
    """What saves have cost so far; on the rank that paid most."""

    count: int
    stall_seconds: float
    """That one holds training up, on average."""
    slowest_seconds: float
    """Until it is committed: 95 % were faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRate:
    """How often a run has failed, and for how long."""

    count: int
    mean_seconds: float
    """Under way, per failure."""
    recovery_seconds: float
    """Until training went on, on average."""
    notice_fraction: float
    """Of the failures, those that were announced and cost no step."""


def account(episodes: Iterable[Episode]) -> Account:
    """The whole run's."""
    episodes = list(episodes)
    by_cause = dict.fromkeys(Cause, 0.0)
    for episode in episodes:
        for row in episode.rows:
            for cause, seconds in split(row.spans).items():
                by_cause[cause] += seconds
    return Account(
        wall_seconds=sum(episode.ended - episode.began for episode in episodes),
        process_seconds=sum(episode.process_seconds for episode in episodes),
        by_cause=by_cause,
    )


def split(spans: Iterable[Span]) -> dict[Cause, float]:
    """Seconds by cause, of those that occur."""
    seconds: dict[Cause, float] = {}
    for span in spans:
        if isinstance(span.cause, Cause):
            seconds[span.cause] = seconds.get(span.cause, 0.0) + span.seconds
    return seconds


def restarts(episodes: Sequence[Episode]) -> list[Restart]:
    """One for each start that takes up what another was torn from."""
    pairs = pairwise(episodes)
    return [_restart(before, after) for before, after in pairs if after.is_continuation]


def failure_rate(episodes: Sequence[Episode]) -> FailureRate | None:
    """How often the run was torn from its work; ``None`` if it never was."""
    found = restarts(episodes)
    if not found:
        return None
    under_way = sum(episode.ended - _first_step(episode) for episode in episodes)
    return FailureRate(
        count=len(found),
        mean_seconds=under_way / len(found),
        recovery_seconds=sum(restart.recovery_seconds for restart in found) / len(found),
        notice_fraction=sum(restart.was_announced for restart in found) / len(found),
    )


def save_costs(episodes: Iterable[Episode]) -> SaveCosts | None:
    """Measured on all ranks; ``None`` if nothing was saved."""
    stalls: list[float] = []
    totals: list[float] = []
    for episode in episodes:
        logs = episode.incarnation.logs
        stalls.append(max(_stalled(log) for log in logs.values()))
        totals += [_save_seconds(event) for event in logs.get(0, ()) if event["event"] == "save"]
    if not totals:
        return None
    return SaveCosts(
        count=len(totals),
        stall_seconds=sum(stalls) / len(totals),
        slowest_seconds=sorted(totals)[min(len(totals) - 1, int(0.95 * len(totals)))],
    )


def _restart(before: Episode, after: Episode) -> Restart:
    old, new = before.incarnation, after.incarnation
    by_cause = dict.fromkeys([*_AWAY, Cause.REDO], 0.0)
    for row in after.rows:
        for cause, seconds in split(_until_caught_up(row.spans)).items():
            by_cause[cause] += seconds / len(after.rows)
    return Restart(
        generation=new.generation,
        at=before.ended,
        cause=_cause(before, after),
        was_announced=old.was_preempted and old.last_step == new.resumed_step,
        world_size=new.world_size,
        reached_step=max(old.last_step, new.resumed_step),
        resumed_step=new.resumed_step,
        lost_samples=_samples_lost(before, new.resumed_step),
        by_cause=by_cause,
    )


def _until_caught_up(spans: Sequence[Span]) -> list[Span]:
    """Up to the first new step: the time away, and work done again."""
    found = []
    for span in spans:
        if span.cause is Cause.PRODUCTIVE:
            break
        if span.cause in _AWAY or span.cause is Cause.REDO:
            found.append(span)
    return found


def _cause(before: Episode, after: Episode) -> str:
    if after.incarnation.cause:
        return after.incarnation.cause
    stop = before.incarnation.stop
    if stop is not None:
        return f"preempted: {stop['reason']}" if stop.get("is_preempted") else str(stop["reason"])
    spikes = before.incarnation.events(0, "spike")
    if spikes:
        return str(spikes[-1].get("reason", "loss spike"))
    return "ended without a word"


def _samples_lost(before: Episode, resumed_step: int) -> int:
    ticks = before.incarnation.ticks
    if not ticks or ticks[-1][1] <= resumed_step:
        return 0
    _, last_step, last_samples = ticks[-1]
    reached = {step: samples for _, step, samples in ticks}
    if resumed_step in reached:
        return last_samples - reached[resumed_step]
    per_step = last_samples / last_step if last_step else 0.0
    return round((last_step - resumed_step) * per_step)


def _first_step(episode: Episode) -> float:
    start = episode.incarnation.start(0)
    return start["time"] if start else episode.began


def _stalled(log: Iterable[Mapping[str, object]]) -> float:
    return sum(float(str(event["seconds"])) for event in log if event["event"] == STALL)


def _save_seconds(save: Mapping[str, object]) -> float:
    return sum(float(str(value)) for name, value in save.items() if name.endswith("_s"))


def _part(seconds: float, of: float) -> float:
    return seconds / of if of > 0 else 0.0
