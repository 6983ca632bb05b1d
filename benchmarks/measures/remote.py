"""Saves to and loads from an S3 server, by the same ranks."""

from benchmarks.measures.durable import measure_load, measure_save
from benchmarks.measures.roster import Roster


def measure(roster: Roster) -> None:
    """Save, then load; what was saved stays until the server is removed."""
    context = roster.context
    for repetition, peer in roster.turns(context.scenario.repetitions):
        saved = measure_save(
            roster, peer, repetition, context.directory / f"{peer.name}-{repetition}"
        )
        if saved is None:
            continue
        if not peer.is_limit:
            context.state.wipe()
        if not measure_load(roster, peer, repetition, saved, "load"):
            context.state.fill()
        context.ranks.wait()
