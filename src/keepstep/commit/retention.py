"""Which checkpoints go and which stay, and why. Nothing here touches storage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from keepstep.commit.catalog import Status
from keepstep.commit.layout import CheckpointId
from keepstep.config.keep import Best, EverySeconds, EverySteps, KeepPolicy, Last, Rule, Tagged

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a manifest tells of a checkpoint that policies ask about."""

    created: datetime
    """By the clock of the coordinator that saved it."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One attempt that is to be decided on."""

    id: CheckpointId
    status: Status
    facts: Facts | None = None
    """``None`` if no manifest could be read; no rule counts such a one."""
    may_still_commit: bool = False
    """Of an uncommitted one: whether a commit of it would count."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one attempt."""

    id: CheckpointId
    status: Status
    is_kept: bool
    reasons: tuple[str, ...]
    size_bytes: int | None = None
    """``None`` if it is not known."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What else, beside committed checkpoints, may go."""

    superseded: bool = False
    quarantined: bool = False


COMMITTED_ONLY = Extent()


def plan_retention(
    candidates: Iterable[Candidate],
    policy: KeepPolicy,
    protected: Mapping[CheckpointId, Sequence[str]],
    *,
    newest_verified: CheckpointId | None,
    extent: Extent = Extent(),  # frozen
) -> list[Decision]:
    """Decide on each attempt, oldest step first.

    A committed checkpoint is kept if a rule of the policy says so, if it is not older than the
    newest verified one, or if it is protected.

    Args:
        protected: What must stay whatever the policy says, with the reasons.
        newest_verified: Without one nothing is removed.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.id)
    wanted = _reasons_to_keep(ordered, policy, newest_verified)
    decisions = []
    for candidate in ordered:
        reasons = (*protected.get(candidate.id, ()), *wanted.get(candidate.id, ()))
        if not reasons:
            reasons = tuple(_kept_by_status(candidate, newest_verified, extent))
        is_kept = bool(reasons)
        decisions.append(
            Decision(
                candidate.id,
                candidate.status,
                is_kept,
                reasons or (_why_removed(candidate.status, policy),),
                candidate.facts.size_bytes if candidate.facts else None,
            )
        )
    return decisions


def _reasons_to_keep(
    ordered: Sequence[Candidate], policy: KeepPolicy, newest_verified: CheckpointId | None
) -> dict[CheckpointId, list[str]]:
    """By the policy, and by the age, of committed checkpoints alone."""
    reasons: dict[CheckpointId, list[str]] = {}
    counted: list[tuple[CheckpointId, Facts]] = []
    for candidate in ordered:
        if candidate.status is not Status.COMMITTED:
            continue
        if candidate.facts is None:
            reasons[candidate.id] = ["its manifest cannot be read"]
        elif newest_verified is not None and candidate.id > newest_verified:
            reasons[candidate.id] = ["newer than the newest verified one"]
        else:
            counted.append((candidate.id, candidate.facts))
    for rule in policy.rules:
        for id in _kept_by(rule, counted):
            reasons.setdefault(id, []).append(str(rule))
    if policy.keeps_all:
        for id, _ in counted:
            reasons[id] = [str(policy)]
    return reasons


def _kept_by(rule: Rule, counted: Sequence[tuple[CheckpointId, Facts]]) -> list[CheckpointId]:
    """What one rule keeps of the checkpoints given, which are in the order of steps."""
    match rule:
        case Last(count):
            return [id for id, _ in counted[-count:]]
        case EverySteps(steps):
            return _first_of_each((id.step // steps, id) for id, _ in counted)
        case EverySeconds(seconds):
            return _first_of_each(
                (facts.created.timestamp() // seconds, id) for id, facts in counted
            )
        case Best():
            return best_of(rule, ((id, facts.metrics) for id, facts in counted))
        case Tagged(tag):
            return [id for id, facts in counted if tag in facts.tags]


def _first_of_each(numbered: Iterable[tuple[float, CheckpointId]]) -> list[CheckpointId]:
    """The first with each number: what comes later does not change which that is."""
    first: dict[float, CheckpointId] = {}
    for number, id in numbered:
        first.setdefault(number, id)
    return list(first.values())


def best_of(rule: Best, counted: Iterable[tuple[T, Mapping[str, float]]]) -> list[T]:
    """The best of what is given with its metrics in the order of steps, the best one first.

    A metric stays what it was until it is measured again: the first with a value earned it.
    """
    earliest: dict[float, T] = {}
    for candidate, metrics in counted:
        if rule.metric in metrics:
            earliest.setdefault(metrics[rule.metric], candidate)
    values = sorted(earliest, reverse=rule.goal == "max")
    return [earliest[value] for value in values[: rule.count]]


def _kept_by_status(
    candidate: Candidate, newest_verified: CheckpointId | None, extent: Extent
) -> Iterable[str]:
    """Why one stays that nothing else keeps."""
    if newest_verified is None:
        yield "no committed checkpoint is verified: nothing is removed"
    elif candidate.status is Status.SUPERSEDED and not extent.superseded:
        yield "superseded; goes with --superseded"
    elif candidate.status is Status.QUARANTINED and not extent.quarantined:
        yield "quarantined; goes with --quarantined"
    elif candidate.status is Status.UNCOMMITTED and candidate.may_still_commit:
        yield "may be under way, or commit late"


def _why_removed(status: Status, policy: KeepPolicy) -> str:
    match status:
        case Status.COMMITTED:
            return f"no rule of {policy} keeps it"
        case Status.PRUNED:
            return "its removal was begun before"
        case Status.UNCOMMITTED:
            return "never committed, and its generation is over"
    return f"{status}"
