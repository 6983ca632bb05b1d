"""Pins: what no prune removes."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from keepstep.commit.canonical import seal
from keepstep.commit.catalog import marked_for_removal
from keepstep.commit.layout import MANIFEST, PINS, CheckpointId, pin_key
from keepstep.errors import ConfigError, NoCheckpointError, ObjectExists, ObjectNotFound
from keepstep.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Pin:
    """One pinned checkpoint."""

    checkpoint: CheckpointId
    name: str | None = None

    def __str__(self) -> str:
        return pinned_in_words(self.name)


def pinned_in_words(name: str | None) -> str:
    """What is said of a pinned checkpoint."""
    return f"pinned as {name}" if name else "pinned"


def pinned(storage: Storage) -> frozenset[CheckpointId]:
    """What is pinned: by the names of the marks."""
    ids = (_checkpoint_of(info.key) for info in storage.list(PINS))
    return frozenset(id for id in ids if id is not None)


def read_pins(storage: Storage) -> dict[CheckpointId, Pin]:
    """What is pinned, and as what."""
    return {id: Pin(id, _name(storage, id)) for id in sorted(pinned(storage))}


def pin(storage: Storage, checkpoint: CheckpointId, name: str | None = None) -> bool:
    """Keep a checkpoint from being pruned; ``False`` if it is pinned so already.

    *Durability:* the pin is durable once this returns.
    *Raises:* ``NoCheckpointError`` if the checkpoint is gone, or going; ``ConfigError`` if it is
    pinned under another name.
    """
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    mark = {"checkpoint": checkpoint.name, "name": name, "created": created}
    try:
        storage.create(pin_key(checkpoint), seal(mark))
    except ObjectExists:
        there = Pin(checkpoint, _name(storage, checkpoint))
        if name not in (None, there.name):
            raise ConfigError(f"{checkpoint} is {there} already; unpin it first") from None
        return False
    # Only now: a prune that has not seen the pin had put up its mark before.
    has_manifest = any(
        info.key == checkpoint.key(MANIFEST) for info in storage.list(checkpoint.prefix)
    )
    if checkpoint in marked_for_removal(storage) or not has_manifest:
        unpin(storage, checkpoint)
        raise NoCheckpointError(f"{checkpoint} is being removed from {storage.uri}: too late")
    return True


def unpin(storage: Storage, checkpoint: CheckpointId) -> None:
    """Leave a checkpoint to the policy. *Durability:* as for ``Storage.delete``."""
    storage.delete([pin_key(checkpoint)])


def _checkpoint_of(key: str) -> CheckpointId | None:
    return CheckpointId.parse(key.removeprefix(PINS).removesuffix(".json"))


def _name(storage: Storage, checkpoint: CheckpointId) -> str | None:
    try:
        name = json.loads(storage.get(pin_key(checkpoint)))["name"]
    except (ValueError, KeyError, TypeError, ObjectNotFound):
        return None  # the mark's own name is enough to pin
    return str(name) if name is not None else None
