"""Loads by another number of ranks than saved, and of one part of eight."""

import json
from pathlib import Path

from benchmarks.measures.durable import measure_loads, measure_save
from benchmarks.measures.roster import Roster

_KEPT = "kept.json"


def keep(roster: Roster) -> None:
    """The job that saves: once by each peer, and the files stay."""
    context = roster.context
    kept: dict[str, str] = {}
    for _, peer in roster.turns(repetitions=0):
        saved = measure_save(roster, peer, 0, context.directory / peer.name)
        if saved is not None:
            kept[peer.name] = str(saved.relative_to(context.directory))
    if context.ranks.is_first:
        (context.directory / _KEPT).write_text(json.dumps(kept))


def measure(roster: Roster) -> None:
    """The job that loads: from the disk and from the page cache, by turns."""
    kept: dict[str, str] = json.loads((roster.context.directory / _KEPT).read_text())
    for repetition, peer in roster.turns(roster.context.scenario.repetitions):
        if peer.name not in kept:
            roster.drop(peer, "its save failed in the job before")
            continue
        measure_loads(roster, peer, repetition, Path(roster.context.directory, kept[peer.name]))
