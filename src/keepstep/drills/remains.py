"""What a run left on storage, as it was found: read without torch and without asking the trainer.

Nothing is concluded here. :mod:`keepstep.drills.history` tells from it what happened.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from keepstep.commit.catalog import Catalog, Entry, Status
from keepstep.commit.index import Frame
from keepstep.commit.layout import LEDGER, CheckpointId
from keepstep.commit.lineage import Generation, read_generation
from keepstep.commit.verify import read_index, verify_checkpoint
from keepstep.observability.ledger import read_ledger
from keepstep.storage.base import Storage

TensorKey = tuple[str, tuple[int, ...]]
"""Name and offsets of a chunk."""


def _digests_from(value: object) -> object:
    """JSON has no keys of two parts: there it is a list of (key, digest)."""
    if isinstance(value, list):
        return {(fqn, tuple(offsets)): digest for (fqn, offsets), digest in value}
    return value


Digests = Annotated[
    Mapping[TensorKey, str],
    BeforeValidator(_digests_from),
    PlainSerializer(lambda digests: [[list(key), digest] for key, digest in digests.items()]),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One attempt and what is in it."""

    id: CheckpointId
    status: Status
    reason: str | None = None
    world_size: int = 0
    state_digest: str | None = None
    digests: Digests = field(default_factory=dict)
    """Content of every chunk and value. Empty for one that is damaged or not committed."""
    tensors: frozenset[TensorKey] = frozenset()
    """Which of them are tensors."""
    damages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """All there is."""

    events: tuple[dict[str, Any], ...]
    """Of the ledgers of all ranks and generations; each log in its own order."""
    claims: tuple[Generation, ...]
    """Ascending."""
    checkpoints: tuple[Checkpoint, ...]
    """Every attempt, ascending."""


def read_remains(storage: Storage) -> Remains:
    """Everything a run has left. Every byte of every committed checkpoint is verified."""
    catalog = Catalog(storage)
    ledgers = [read_ledger(storage.get(info.key)) for info in storage.list(LEDGER)]
    return Remains(
        events=tuple(event for ledger in ledgers for event in ledger),
        claims=tuple(read_generation(storage, n) for n in sorted(catalog.generations())),
        checkpoints=tuple(_checkpoint(storage, entry) for entry in catalog.entries()),
    )


def _checkpoint(storage: Storage, entry: Entry) -> Checkpoint:
    if not entry.has_manifest:
        return Checkpoint(id=entry.id, status=entry.status)
    if damages := verify_checkpoint(storage, entry.id):
        texts = tuple(map(str, damages))
        return Checkpoint(id=entry.id, status=entry.status, reason=entry.reason, damages=texts)
    manifest = Catalog(storage).manifest(entry.id)
    frames: list[Frame] = []
    for rank in range(manifest.world_size):
        frames += read_index(storage, manifest, rank).frames
    return Checkpoint(
        id=entry.id,
        status=entry.status,
        reason=entry.reason,
        world_size=manifest.world_size,
        state_digest=manifest.state_digest,
        digests={(frame.fqn, frame.offsets): frame.digest for frame in frames},
        tensors=frozenset((f.fqn, f.offsets) for f in frames if f.kind == "tensor"),
    )
