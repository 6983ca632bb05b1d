"""What people do with a command line, and programs that only read, while a job is training."""

from contextlib import suppress
from typing import TYPE_CHECKING

from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.pins import pin, unpin
from keepstep.commit.pruning import Pruner
from keepstep.commit.retention import Extent
from keepstep.commit.rollback import roll_back
from keepstep.commit.starting import announced_start
from keepstep.config import parse_keep
from keepstep.errors import (
    CoordinationError,
    CorruptCheckpointError,
    FencedError,
    NoCheckpointError,
    ObjectNotFound,
    StorageError,
)
from keepstep.testing.simulation.reading import read_states

if TYPE_CHECKING:
    from keepstep.testing.simulation.history import History


def prune(history: "History", number: int) -> None:
    """``keepstep prune``, sometimes with ``--superseded`` and ``--quarantined``."""
    extent = Extent(superseded=number % 2 == 0, quarantined=number % 3 == 0)
    try:
        with history.pruning():
            Pruner(history.storage).prune(parse_keep(history.plan.keep), extent)
    except (CoordinationError, FencedError, StorageError):
        pass  # it says why


def go_back(history: "History", number: int) -> None:
    """``keepstep rollback`` to any checkpoint."""
    storage = history.storage
    try:
        with announced_start(storage) as start:
            heads = [
                entry.id
                for entry in Catalog(storage).entries()
                if entry.status in (Status.COMMITTED, Status.SUPERSEDED)
            ]
            if heads:
                roll_back(storage, heads[number % len(heads)], start)
    except (CorruptCheckpointError, NoCheckpointError) as error:
        _check_damaged(history, "rollback", error)
    except (FencedError, StorageError):
        pass  # it says why


def put_pin(history: "History", number: int) -> None:
    """``keepstep pin`` of any checkpoint."""
    try:
        entries = [entry.id for entry in Catalog(history.storage).entries() if entry.has_manifest]
        if entries:
            checkpoint = entries[number % len(entries)]
            pin(history.storage, checkpoint)
            history.oracle.pinned.add(checkpoint)
    except (NoCheckpointError, StorageError):
        pass  # it says why


def take_pin(history: "History", number: int) -> None:
    """``keepstep unpin``."""
    pinned = sorted(history.oracle.pinned)
    if not pinned:
        return
    checkpoint = pinned[number % len(pinned)]
    history.oracle.pinned.discard(checkpoint)
    with suppress(StorageError):  # it says so
        unpin(history.storage, checkpoint)


def read(history: "History", number: int) -> None:
    """Load the newest checkpoint, or another, without a word to anybody."""
    try:
        candidates = Catalog(history.storage).candidates()
        if candidates:
            checkpoint = candidates[min(number % 4, len(candidates) - 1)]
            history.oracle.loaded(checkpoint, read_states(history.storage, checkpoint))
    except (CorruptCheckpointError, ObjectNotFound) as error:
        _check_damaged(history, "a reader", error)
    except StorageError:
        pass  # it says so


def _check_damaged(history: "History", who: str, error: Exception) -> None:
    """Damage is reported where there is some; what is being removed is found missing."""
    if isinstance(error, CorruptCheckpointError) and not history.oracle.damaged:
        history.violate(f"I4: {who} finds damage, and there is none: {error}")
