"""Many saves in a row: what the process holds on to must not grow."""

from dataclasses import asdict

from benchmarks.files import remove
from benchmarks.measures.roster import Roster
from benchmarks.usage import Holdings

_MARKS = 10
_SETTLED = 20
"""Saves after which every buffer, thread and connection has had its first use."""


def measure(roster: Roster) -> None:
    """Save and remove, over and over; note the holdings at some marks, the first one early on."""
    context = roster.context
    saves = context.scenario.saves
    marks = {max(1, saves * number // _MARKS) for number in range(1, _MARKS + 1)}
    marks = {mark for mark in marks if mark > _SETTLED} | {min(saves, _SETTLED)}
    for number, peer in roster.turns(saves - 1):
        if not roster.succeeds(peer, peer.prepare):
            continue
        directory = context.directory / f"{peer.name}-{number}"
        saved = roster.attempt(peer, lambda: peer.save(directory))  # noqa: B023  # called at once
        context.ranks.wait()
        if saved is not None and context.ranks.is_first:
            remove(saved)
        context.ranks.wait()
        if saved is not None and number + 1 in marks:
            roster.report(peer, "soak", number + 1, **asdict(Holdings.now()))
