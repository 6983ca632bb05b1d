"""Which checkpoints a run has, and which of them count."""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from keepstep.commit.canonical import seal, unseal
from keepstep.commit.layout import (
    MANIFEST,
    PRUNED,
    QUARANTINE,
    RUN_KEY,
    STEPS,
    CheckpointId,
    new_attempt,
    parse_pruned,
    quarantine_key,
)
from keepstep.commit.lineage import claims_on_line, list_generations, valid_line
from keepstep.commit.manifest import Manifest
from keepstep.errors import CorruptCheckpointError, NoCheckpointError, ObjectExists, ObjectNotFound
from keepstep.storage.base import Storage


class Status(StrEnum):
    """What an attempt counts for."""

    COMMITTED = "committed"
    """On the valid line, and not known to be damaged: can be resumed from."""
    SUPERSEDED = "superseded"
    """Has a manifest, but a newer generation resumed from before it."""
    QUARANTINED = "quarantined"
    """Found damaged and set aside."""
    PRUNED = "pruned"
    """A prune has begun to remove it; until all of it is gone."""
    UNCOMMITTED = "uncommitted"
    """Has no manifest: unfinished, aborted, or still under way."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt, as a listing shows it."""

    id: CheckpointId
    status: Status
    reason: str | None = None
    """Why, for a quarantined one."""

    @property
    def has_manifest(self) -> bool:
        """Whether it ever was a checkpoint that is not being removed."""
        return self.status not in (Status.UNCOMMITTED, Status.PRUNED)


class Catalog:
    """The checkpoints of one run. State comes from listed names and claims, never from clocks."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def run(self) -> dict[str, Any]:
        """``run`` (id) and ``created``. *Raises:* ``NoCheckpointError`` if there is no run here."""
        try:
            return unseal(self._storage.get(RUN_KEY), RUN_KEY)
        except ObjectNotFound:
            raise NoCheckpointError(
                f"{self._storage.uri} holds no keepstep run (no {RUN_KEY})"
            ) from None

    def open_run(self) -> str:
        """The run's id; a new run is created here if there is none.

        *Ranks:* coordinator.
        """
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        # Resumed, or another coordinator was first: either way the one that is there counts.
        with suppress(ObjectExists):
            self._storage.create(RUN_KEY, seal({"run": new_attempt(), "created": created}))
        return str(self.run()["run"])

    def entries(self) -> list[Entry]:
        """Every attempt, oldest step first.

        Reads one listing, the marks, and the claims on the line.
        """
        # Marks come first: what loses its manifest after this listing is in it, or was gone before.
        pruned = marked_for_removal(self._storage)
        manifests, attempts = self._attempts()
        reasons = self._quarantine_reasons()
        claims = claims_on_line(self._storage)
        if claims:
            # Whoever marked it saw the claim, or a start under way, and has left it alone.
            pruned.discard(claims[max(claims)].resumed_from)
        line = valid_line(claims)
        return [
            Entry(attempt, _status(attempt, manifests, reasons, pruned, line), reasons.get(attempt))
            for attempt in sorted(attempts)
        ]

    def candidates(self) -> list[CheckpointId]:
        """What can be resumed from, newest first."""
        return [entry.id for entry in reversed(self.entries()) if entry.status is Status.COMMITTED]

    def latest(self) -> CheckpointId | None:
        """The newest checkpoint that can be resumed from."""
        return next(iter(self.candidates()), None)

    def manifest(self, checkpoint: CheckpointId) -> Manifest:
        """A checkpoint's manifest, checked, and checked to be that checkpoint's.

        *Raises:* ``CorruptCheckpointError``, ``ObjectNotFound``, ``UnsupportedFormatError``.
        """
        key = checkpoint.key(MANIFEST)
        manifest = Manifest.from_bytes(self._storage.get(key), key)
        if manifest.id != checkpoint:
            raise CorruptCheckpointError(f"{key} is the manifest of {manifest.id}", key=key)
        return manifest

    def generations(self) -> list[int]:
        """Numbers of all generations, ascending."""
        return list_generations(self._storage)

    def quarantine(self, checkpoint: CheckpointId, reason: str) -> None:
        """Set a damaged checkpoint aside. Its objects are not touched.

        *Ranks:* coordinator. *Durability:* the mark is durable once this returns.
        """
        mark = {
            "checkpoint": checkpoint.name,
            "reason": reason,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        with suppress(ObjectExists):  # marked before: the first reason stands
            self._storage.create(quarantine_key(checkpoint), seal(mark))

    def _attempts(self) -> tuple[set[CheckpointId], set[CheckpointId]]:
        """Those with a manifest, and all."""
        names, with_manifest = set(), set()
        for info in self._storage.list(STEPS):
            name, _, file = info.key.removeprefix(STEPS).partition("/")
            names.add(name)
            if file == MANIFEST:
                with_manifest.add(name)
        attempts = {id for name in names if (id := CheckpointId.parse(name)) is not None}
        return {id for id in attempts if id.name in with_manifest}, attempts

    def _quarantine_reasons(self) -> dict[CheckpointId, str]:
        reasons = {}
        for info in self._storage.list(QUARANTINE):
            name = info.key.removeprefix(QUARANTINE).removesuffix(".json")
            if (attempt := CheckpointId.parse(name)) is not None:
                reasons[attempt] = self._quarantine_reason(info.key)
        return reasons

    def _quarantine_reason(self, key: str) -> str:
        try:
            return str(json.loads(self._storage.get(key))["reason"])
        except (ValueError, KeyError, TypeError):
            return "marked; the mark itself is damaged"  # its name is enough to set aside


def marked_for_removal(storage: Storage) -> set[CheckpointId | None]:
    """Checkpoints that some prune has put up a mark for."""
    return {parse_pruned(info.key) for info in storage.list(PRUNED)}


def _status(
    attempt: CheckpointId,
    manifests: set[CheckpointId],
    reasons: dict[CheckpointId, str],
    pruned: set[CheckpointId | None],
    line: dict[int, int | None],
) -> Status:
    if attempt in pruned:
        return Status.PRUNED
    if attempt in reasons:
        return Status.QUARANTINED
    if attempt not in manifests:
        return Status.UNCOMMITTED
    last_step = line.get(attempt.generation, -1)
    is_on_line = last_step is None or attempt.step <= last_step
    return Status.COMMITTED if is_on_line else Status.SUPERSEDED
