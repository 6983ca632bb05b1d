"""What commands know of a checkpoint, under the names that ``--json`` prints."""

from collections.abc import Iterable, Mapping
from typing import TypedDict

from keepstep.cli.output import age_seconds
from keepstep.commit.catalog import Catalog, Entry, Status
from keepstep.commit.layout import CheckpointId
from keepstep.commit.manifest import Manifest
from keepstep.commit.pins import Pin
from keepstep.errors import (
    CorruptCheckpointError,
    NoCheckpointError,
    ObjectNotFound,
    UnsupportedFormatError,
)
from keepstep.storage.base import Storage

_BEST_FIRST = (
    Status.COMMITTED,
    Status.QUARANTINED,
    Status.SUPERSEDED,
    Status.PRUNED,
    Status.UNCOMMITTED,
)


class Record(TypedDict):
    """One attempt. What only a readable manifest tells is ``None`` without one."""

    name: str
    step: int
    generation: int
    attempt: str
    status: str
    note: str | None
    """Why it is quarantined, or what is wrong with its manifest."""
    created: str | None
    age_seconds: float | None
    size_bytes: int | None
    objects: int | None
    world_size: int | None
    metrics: dict[str, float] | None
    tags: list[str] | None
    pin: dict[str, str | None] | None
    """With the pin's ``name``, which may be ``None``; for one that is not pinned ``None``."""


def read_record(catalog: Catalog, entry: Entry, pins: Mapping[CheckpointId, Pin]) -> Record:
    """The record of one attempt; a manifest that cannot be read becomes its note."""
    pin = pins.get(entry.id)
    if not entry.has_manifest:
        return _record(entry, None, entry.reason, pin)
    try:
        return _record(entry, catalog.manifest(entry.id), entry.reason, pin)
    except (CorruptCheckpointError, ObjectNotFound, UnsupportedFormatError) as error:
        return _record(entry, None, entry.reason or str(error), pin)


def open_run(storage: Storage) -> Catalog:
    """The catalog of a run that is there. *Raises:* ``NoCheckpointError``."""
    catalog = Catalog(storage)
    catalog.run()
    return catalog


def find_entry(storage: Storage, entries: Iterable[Entry], wanted: str) -> Entry:
    """The attempt of a name, or the one of a step that counts most.

    *Raises:* ``NoCheckpointError`` with the steps there are.
    """
    known = list(entries)
    matching = [entry for entry in known if wanted in {str(entry.id.step), entry.id.name}]
    if matching:
        return min(
            matching, key=lambda entry: (_BEST_FIRST.index(entry.status), -entry.id.generation)
        )
    steps = sorted({entry.id.step for entry in known if entry.has_manifest})
    there = f"there are {', '.join(map(str, steps))}" if steps else "there are none"
    raise NoCheckpointError(f"{storage.uri} has no checkpoint {wanted}; {there}")


def check_has_manifest(entry: Entry) -> None:
    """*Raises:* ``NoCheckpointError`` if nothing vouches for the attempt's bytes."""
    if entry.status is Status.PRUNED:
        raise NoCheckpointError(f"{entry.id} is being removed; `keepstep prune` ends it")
    if not entry.has_manifest:
        raise NoCheckpointError(f"{entry.id} was never committed: nothing vouches for its bytes")


def _record(entry: Entry, manifest: Manifest | None, note: str | None, pin: Pin | None) -> Record:
    return Record(
        name=entry.id.name,
        step=entry.id.step,
        generation=entry.id.generation,
        attempt=entry.id.attempt,
        status=entry.status.value,
        note=note,
        created=manifest.created if manifest else None,
        age_seconds=round(age_seconds(manifest.created), 1) if manifest else None,
        size_bytes=manifest.total_bytes if manifest else None,
        objects=len(manifest.objects) if manifest else None,
        world_size=manifest.world_size if manifest else None,
        metrics=dict(manifest.metrics) if manifest else None,
        tags=list(manifest.tags) if manifest else None,
        pin={"name": pin.name} if pin else None,
    )
