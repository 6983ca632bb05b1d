"""What a session tells: one line for a person, one event for the ledger."""

import logging
import os
import socket
from collections.abc import Mapping, Sequence

from keepstep.checkpoint.mismatch import Difference, table
from keepstep.elastic.orders import cause_of_start
from keepstep.errors import CommitError
from keepstep.observability.counters import COUNTERS
from keepstep.observability.ledger import END, Ledger
from keepstep.observability.startup import Moments
from keepstep.observability.work import STALL, WORK
from keepstep.session.results import Restored
from keepstep.session.saving import Save
from keepstep.storage.retrying import RETRIES
from keepstep.world import World

logger = logging.getLogger("keepstep.session")

RESERVED_EVENTS = frozenset(
    {
        *("generation", "start", "phase", "sections", "state", "step", "stop", "spike", "skipped"),
        *("save", "save_begun", "save_failed", "save_skipped", "prune", STALL, WORK, END),
    }
)
"""What the session itself writes into the ledger."""


def report_restored(restored: Restored, ledger: Ledger, world: World, uri: str) -> None:
    """Where training goes on, and what was lost. *Ranks:* all; the coordinator logs."""
    lost = restored.lost
    ledger.record(
        "generation",
        step=restored.step,
        world_size=world.world_size,
        resumed_from=restored.checkpoint.name if restored.checkpoint else None,
        state_digest=restored.state_digest,
        skipped=[skipped.checkpoint.name for skipped in restored.skipped],
        lost_steps=lost.steps if lost else 0,
        restart_count=world.restart_count,
        cause=cause_of_start(),
        initialized_from=restored.initialized_from,
        left=list(restored.left),
    )
    if not world.is_coordinator:
        return
    if restored.checkpoint is None:
        source = restored.initialized_from
        weights = f", with weights from {source}" if source else ""
        logger.info("fresh start of generation %d in %s%s", restored.generation, uri, weights)
    else:
        logger.info(
            "resumed from %s as generation %d, world size %s -> %d",
            restored.checkpoint,
            restored.generation,
            restored.world_size_was,
            world.world_size,
        )
    if lost is not None:
        logger.info(
            "last step run %d, last step committed %d: %d steps, %d samples, %.1f s to redo",
            lost.last_step,
            lost.committed_step,
            lost.steps,
            lost.samples,
            lost.seconds,
        )


def report_started(
    spans: Mapping[str, Moments], ledger: Ledger, *, opened_at: float, loading_at: float
) -> None:
    """What has gone before the first step. *Ranks:* all.

    Args:
        spans: What is known of the time before the session, in Unix seconds.
    """
    ledger.record(
        "start",
        opened=round(opened_at, 3),
        loading=round(loading_at, 3),
        before={name: [round(moment, 3) for moment in span] for name, span in spans.items()},
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def report_left(left: Sequence[Difference], world: World) -> None:
    """What was allowed not to fit. *Ranks:* all; the coordinator logs."""
    if left and world.is_coordinator:
        logger.warning("not restored, because it does not fit:\n%s", table(left))


def report_saved(saved: Save, ledger: Ledger, *, allocations: int) -> None:
    """One line per save. *Ranks:* all; the coordinator logs.

    Args:
        allocations: Of host memory for saving, so far.
    """
    checkpoint = saved.checkpoint
    seconds = {f"{phase}_s": round(taken, 4) for phase, taken in saved.seconds.items()}
    ledger.record(
        "save",
        step=checkpoint.step,
        checkpoint=checkpoint.name,
        began=round(saved.began_at, 3),
        persisting=round(saved.persisting_at, 3),
        allocations=allocations,
        storage_retries=COUNTERS.total(RETRIES),
        **seconds,
    )
    if saved.manifest is not None:
        logger.info(
            "step=%d outcome=committed bytes=%d objects=%d %s attempt=%s",
            checkpoint.step,
            saved.manifest.total_bytes,
            len(saved.manifest.objects),
            " ".join(f"{name}={taken:.3f}" for name, taken in seconds.items()),
            checkpoint.attempt,
        )


def report_skipped_save(step: int, ledger: Ledger, world: World) -> None:
    """A save that was due while another was in flight. *Ranks:* all; the coordinator logs."""
    ledger.record("save_skipped", step=step)
    if world.is_coordinator:
        logger.info("step=%d outcome=skipped: the save before it is still in flight", step)


def report_pause(seconds: float, longest_seconds: float, world: World) -> None:
    """Training waits for the store. *Ranks:* all; the coordinator logs."""
    if world.is_coordinator:
        logger.warning(
            "training is paused for %.0f of at most %.0f s: no save can be committed",
            seconds,
            longest_seconds,
        )


def report_failed_save(
    error: CommitError, step: int, world: World, *, failed: int, allowed: int
) -> None:
    """A save that did not come to pass. *Ranks:* all; the coordinator logs."""
    if world.is_coordinator:
        logger.warning(
            "step=%d outcome=%s failed_saves=%d/%d: %s",
            step,
            type(error).__name__,
            failed,
            allowed,
            error,
        )
