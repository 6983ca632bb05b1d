"""What a session has once it has restored: the incarnation that it is, ready to save."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from keepstep.checkpoint.store import C10dStore
from keepstep.commit.layout import ledger_key
from keepstep.commit.skips import Skip, read_skips
from keepstep.elastic.control_group import ControlGroup
from keepstep.observability.ledger import Ledger
from keepstep.observability.work import WorkRecord
from keepstep.session.history import failures_before
from keepstep.session.pacing import Failures, pace_of
from keepstep.session.premises import abort_stale_uploads
from keepstep.session.resume import Resumed
from keepstep.session.retention import Retention
from keepstep.session.saves import Saves
from keepstep.session.saving import Saver
from keepstep.session.sections import SectionRecord
from keepstep.session.settings import Settings
from keepstep.storage.base import Storage
from keepstep.storage.log import open_log
from keepstep.world import World


@dataclass(frozen=True, slots=True)
class Generation:
    """One incarnation of a run, on one rank."""

    number: int
    saves: Saves
    retention: Retention
    ledger: Ledger
    sections: SectionRecord
    work: WorkRecord
    skips: tuple[Skip, ...]
    """Data that is left out."""


def begin_generation(
    storage: Storage,
    store: C10dStore,
    resumed: Resumed,
    *,
    run: str,
    settings: Settings,
    world: World,
    control: ControlGroup,
    is_hurried: Callable[[], bool],
) -> Generation:
    """Open the ledger, and what saves. *Ranks:* collective.

    Args:
        run: Its id.
        is_hurried: Whether this process has been told to go.
    """
    if world.is_coordinator:
        abort_stale_uploads(storage, resumed.generation)
    ledger = Ledger(
        open_log(storage, ledger_key(resumed.generation, world.rank)),
        generation=resumed.generation,
        rank=world.rank,
    )
    saver = Saver(
        storage,
        store,
        mode=settings.mode,
        world=world,
        run=run,
        generation=resumed.generation,
        nonce=resumed.nonce,
        timeout_seconds=settings.timeout_seconds,
        deadline_seconds=settings.deadline_seconds,
        before_commit=ledger.flush,
        is_hurried=is_hurried,
    )
    retention = Retention(storage, settings.keep, ledger, generation=resumed.generation)
    saves = Saves(
        saver,
        ledger,
        control,
        world=world,
        latest=resumed.loaded.manifest.id if resumed.loaded else None,
        failed_saves_allowed=settings.failed_saves_allowed,
        when_failing=settings.when_failing,
        longest_pause_seconds=settings.longest_pause_seconds,
        pace=pace_of(settings.every, partial(_failures_before, storage, resumed.generation, world)),
        after_commit=retention.committed if world.is_coordinator else _nothing,
    )
    skips = control.decide(lambda: read_skips(storage))
    return Generation(
        resumed.generation,
        saves,
        retention,
        ledger,
        SectionRecord(ledger),
        WorkRecord(ledger),
        skips,
    )


def _failures_before(storage: Storage, generation: int, world: World) -> Failures:
    # The coordinator decides when to save.
    return failures_before(storage, generation) if world.is_coordinator else Failures()


def _nothing() -> None:
    """What other ranks do after a commit."""
