"""Synchronous saves, and loads by the same ranks: from a barrier until the slowest rank is done."""

import os
import time
from pathlib import Path

from benchmarks.files import drop_from_cache, read_into_cache, remove
from benchmarks.measures.roster import Roster
from benchmarks.peers import Context, Peer
from benchmarks.usage import Meter, release_free_memory


def measure(roster: Roster) -> None:
    """Save, load with cold and with warm files, remove; then the next peer."""
    context = roster.context
    for repetition, peer in roster.turns(context.scenario.repetitions):
        directory = context.directory / f"{peer.name}-{repetition}"
        saved = measure_save(roster, peer, repetition, directory)
        if saved is not None:
            measure_loads(roster, peer, repetition, saved)
            context.ranks.wait()
            if context.ranks.is_first:
                remove(saved)
        context.ranks.wait()


def measure_save(roster: Roster, peer: Peer, repetition: int, directory: Path) -> Path | None:
    """One save; where it is, or ``None`` if the peer failed."""
    if not roster.succeeds(peer, peer.prepare):
        return None
    calm(roster.context)
    with Meter() as meter:
        roster.context.ranks.wait()
        began = time.perf_counter()
        saved = roster.attempt(peer, lambda: peer.save(directory))
        seconds = time.perf_counter() - began
    if saved is not None:
        roster.report(
            peer,
            "save",
            repetition,
            seconds=seconds,
            cpu_seconds=meter.cpu_seconds,
            extra_bytes=meter.extra_bytes,
            device_extra_bytes=meter.device_extra_bytes,
            written_bytes=meter.written_bytes,
        )
    return saved


def measure_loads(roster: Roster, peer: Peer, repetition: int, saved: Path) -> None:
    """One load from the disk and one from the page cache, each checked bit by bit."""
    for work, set_cache in (("load cold", drop_from_cache), ("load warm", read_into_cache)):
        context = roster.context
        if context.ranks.is_first:
            set_cache(saved)
        if not peer.is_limit:
            context.state.wipe()
            context.state.synchronize()
        if not measure_load(roster, peer, repetition, saved, work):
            context.state.fill()
            return


def calm(context: Context) -> None:
    """Nobody pays for what was done before: garbage is collected, dirty pages are on the disk."""
    release_free_memory()
    context.ranks.wait()
    if context.ranks.is_first:
        os.sync()
    context.ranks.wait()


def measure_load(roster: Roster, peer: Peer, repetition: int, saved: Path, work: str) -> bool:
    """One load, checked bit by bit; false if the peer failed."""

    def load() -> None:
        peer.load(saved)
        roster.context.state.synchronize()

    release_free_memory()
    with Meter() as meter:
        roster.context.ranks.wait()
        began = time.perf_counter()
        has_loaded = roster.succeeds(peer, load)
        seconds = time.perf_counter() - began
    if not has_loaded or not is_right(roster, peer):
        return False
    roster.report(
        peer,
        work,
        repetition,
        seconds=seconds,
        cpu_seconds=meter.cpu_seconds,
        extra_bytes=meter.extra_bytes,
        device_extra_bytes=meter.device_extra_bytes,
        read_bytes=meter.read_bytes,
    )
    return True


def is_right(roster: Roster, peer: Peer) -> bool:
    """Whether all tensors of all ranks hold the known numbers; if not, the peer is out."""
    if peer.is_limit:
        return True
    num_wrong = roster.attempt(peer, roster.context.state.count_wrong)
    if num_wrong is None:
        return False
    if roster.context.ranks.any(is_true=num_wrong > 0):
        roster.drop(peer, f"WRONG DATA after a load: {num_wrong} tensors on this rank")
        return False
    return True
