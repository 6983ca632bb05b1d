"""What a session hands over for metrics: numbers as they are, and counts of what has happened.

What concerns the whole job is counted by the coordinator alone, so that nodes can be added up.
"""

import time
from collections.abc import Mapping

from keepstep.errors import CommitError
from keepstep.observability.counters import COUNTERS
from keepstep.observability.numbers import METER
from keepstep.session.pacing import Pace
from keepstep.session.results import Restored
from keepstep.session.saving import Save
from keepstep.world import World

SAVES = "saves"
"""Name of the count of saves; label: outcome, in the words of the log."""
SAVE_PHASE = "save_phase"
"""Name of the count of durations; label: phase."""

COMMITTED = "committed"
SKIPPED = "skipped"


def meter_start(restored: Restored, pace: Pace, world: World) -> None:
    """Training begins, or goes on. *Ranks:* all."""
    METER.set(
        generation=restored.generation,
        world_size=world.world_size,
        nodes=world.num_nodes,
        step=restored.step,
        at_risk_since_ns=time.monotonic_ns(),
        failed_saves=0,
    )
    if restored.checkpoint is not None:
        METER.set(committed_step=restored.checkpoint.step)
    _meter_interval(pace)
    if world.is_coordinator:
        COUNTERS.add("quarantined", len(restored.skipped))
        lost = restored.lost
        COUNTERS.add("lost_steps", lost.steps if lost else 0)
        COUNTERS.add("lost_ns", round(lost.seconds * 1e9) if lost else 0)
    METER.write()


def meter_step(step: int, *, samples: int, tokens: int, world: World) -> None:
    """A step has ended that has consumed so many, over all ranks. *Ranks:* all."""
    METER.set(step=step)
    if world.is_coordinator:
        COUNTERS.add("steps")
        COUNTERS.add("samples", samples)
        COUNTERS.add("tokens", tokens)


def meter_metrics(metrics: Mapping[str, float]) -> None:
    """What the loop has measured. *Ranks:* coordinator."""
    METER.set_metrics(metrics)


def meter_saved(saved: Save, pace: Pace, *, begun_ns: int) -> None:
    """A step is committed. *Ranks:* all.

    Args:
        begun_ns: When the save began, on the monotonic clock: what came later is at risk.
    """
    METER.set(
        committed_step=saved.checkpoint.step,
        committed_at=time.time(),
        at_risk_since_ns=begun_ns,
        failed_saves=0,
    )
    _meter_interval(pace)
    for phase, seconds in saved.seconds.items():
        COUNTERS.observe(SAVE_PHASE, seconds, phase=phase)
    if saved.manifest is not None:
        COUNTERS.add(SAVES, outcome=COMMITTED)
        COUNTERS.add("committed_bytes", saved.manifest.total_bytes)
        METER.set(checkpoint_bytes=saved.manifest.total_bytes)
    METER.write()


def meter_failed_save(error: CommitError, world: World, *, failed: int) -> None:
    """A save did not come to pass, for the so-manieth time in a row. *Ranks:* all."""
    METER.set(failed_saves=failed)
    if world.is_coordinator:
        COUNTERS.add(SAVES, outcome=type(error).__name__)
    METER.write()


def meter_skipped_save(world: World) -> None:
    """A save was due while another was in flight. *Ranks:* all."""
    if world.is_coordinator:
        COUNTERS.add(SAVES, outcome=SKIPPED)


def _meter_interval(pace: Pace) -> None:
    METER.set(interval_seconds=pace.seconds or 0.0, interval_steps=pace.steps or 0)
