"""When a round may form, and when its members have to come together again."""

from collections.abc import Mapping
from dataclasses import dataclass

from keepstep.elastic.rendezvous.roster import Roster
from keepstep.elastic.rendezvous.settings import Settings

DEPARTURE_SETTLE_SECONDS = 1.0
"""Nodes that go together, as a rack or a spot pool does, should cost one restart."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many nodes a round may have."""

    min_nodes: int
    max_nodes: int


@dataclass(frozen=True, slots=True)
class Times:
    """When this node saw what, on its own monotonic clock."""

    now: float
    arrivals: Mapping[str, float]
    """By joining node."""
    departure: float | None
    """When the last of the departed nodes was missed first."""
    commit: float | None
    """When the workers here last reported a commit."""


def may_form(roster: Roster, bounds: Bounds, times: Times, settings: Settings) -> bool:
    """Whether the joining nodes become the next round now.

    Not while a member of the running round is neither here nor gone, and never below the minimum.
    """
    if roster.is_complete or roster.members or len(roster.joining) < bounds.min_nodes:
        return False
    if len(roster.joining) >= bounds.max_nodes or roster.returned:
        return True  # everybody is here, or everybody who survived is
    return _quiet_seconds(roster.joining, times) >= settings.last_call_timeout


def may_call(roster: Roster, bounds: Bounds, times: Times, settings: Settings) -> bool:
    """Whether training is interrupted now, to admit newcomers.

    Best right after a commit, when the least work is repeated; after ``admit_timeout`` anyway.
    """
    room = bounds.max_nodes - len(roster.members)
    if roster.is_called or room <= 0 or not roster.newcomers:
        return False
    first = min(times.arrivals.get(node, times.now) for node in roster.newcomers)
    if times.now - first >= settings.admit_timeout:
        return True
    is_committed = times.commit is not None and times.commit > first
    is_settled = _quiet_seconds(roster.newcomers, times) >= settings.settle_timeout
    return is_committed and (is_settled or len(roster.newcomers) >= room)


def reason_to_rejoin(roster: Roster, node: str, round_number: int, times: Times) -> str | None:
    """Why a member of this round should stop its workers and join the next; None: train on."""
    if roster.is_complete:
        return None  # whoever is still at it may end in peace
    if roster.round != round_number:
        return f"round {roster.round} has been formed without this node"
    if node not in roster.members:
        return "this node was taken for dead"
    if roster.returned:
        return f"{len(roster.returned)} node(s) of this round have stopped their workers"
    if roster.is_called:
        return f"{len(roster.newcomers)} node(s) wait to be admitted"
    settled = times.now - DEPARTURE_SETTLE_SECONDS
    if roster.departed and times.departure is not None and times.departure <= settled:
        return f"{len(roster.departed)} node(s) of this round are gone"
    return None


def _quiet_seconds(nodes: tuple[str, ...], times: Times) -> float:
    return times.now - max(times.arrivals.get(node, times.now) for node in nodes)
