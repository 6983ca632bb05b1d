"""Going back: an older checkpoint becomes the head of a new line; what came after it stays."""

from dataclasses import dataclass

from keepstep.commit.catalog import Catalog, Entry, Status
from keepstep.commit.layout import CheckpointId, ledger_key
from keepstep.commit.lineage import (
    check_not_fenced,
    claim_generation,
    list_generations,
    read_generation,
)
from keepstep.commit.starting import Start
from keepstep.commit.verify import check_presence
from keepstep.errors import CorruptCheckpointError, NoCheckpointError
from keepstep.observability.ledger import END, read_ledger
from keepstep.storage.base import Storage
from keepstep.storage.log import read_log

NO_RANKS = 0
"""The world size in the claim of a tool."""

_TAIL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What came of it."""

    generation: int
    """The one that was claimed."""
    head: CheckpointId
    superseded: tuple[CheckpointId, ...]
    """What counted before and does not now."""


def roll_back(storage: Storage, head: CheckpointId, start: Start) -> RolledBack:
    """Claim the next generation, resumed from ``head``: the next start goes on from there.

    Nothing is removed: rolling back to what was superseded undoes it.

    Args:
        start: Announced before ``head`` was chosen.

    *Durability:* the claim is durable once this returns.
    *Raises:* ``NoCheckpointError`` if ``head`` is not a checkpoint that can be resumed from;
    ``CorruptCheckpointError`` if it is damaged as far as shows without reading its tensors;
    ``FencedError`` if a job has started meanwhile.
    """
    catalog = Catalog(storage)
    entries = catalog.entries()
    _check_resumable(storage, entries, head)
    if damages := check_presence(storage, catalog.manifest(head)):
        # What looks damaged may be in removal: by a job that has started since.
        check_not_fenced(storage, start.newest_generation)
        raise CorruptCheckpointError(f"{head} is damaged: {damages[0]}", key=damages[0].key)
    claim = claim_generation(
        storage,
        newest_seen=start.newest_generation,
        world_size=NO_RANKS,
        resumed_from=head,
    )
    counted = set(catalog.candidates())
    before = [entry.id for entry in entries if entry.status is Status.COMMITTED]
    return RolledBack(claim.number, head, tuple(id for id in before if id not in counted))


def may_be_training(storage: Storage) -> int | None:
    """The newest generation, unless its job has ended in good order or it is a tool's."""
    newest = max(list_generations(storage), default=None)
    if newest is None or read_generation(storage, newest).world_size == NO_RANKS:
        return None
    log = read_log(storage, ledger_key(newest, 0), last_bytes=_TAIL_BYTES)
    has_ended = any(event["event"] == END for event in read_ledger(log))
    return None if has_ended else newest


def _check_resumable(storage: Storage, entries: list[Entry], head: CheckpointId) -> None:
    status = next((entry.status for entry in entries if entry.id == head), None)
    if status not in (Status.COMMITTED, Status.SUPERSEDED):
        raise NoCheckpointError(
            f"{head} is {status or 'not there'} in {storage.uri}: only what was committed, and is "
            "whole, can be gone back to"
        )
