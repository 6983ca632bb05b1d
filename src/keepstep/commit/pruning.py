"""Removing checkpoints, so that a crash at any point leaves a run that can be resumed.

A checkpoint goes in this order: a mark of this prune's own is put up in ``pruned/``; the
surroundings are looked at again; the manifest is removed; then the objects; then the marks. From
the mark on it counts for nothing, and whoever finds it without a manifest knows why.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from keepstep.commit.catalog import Catalog, Entry, Status
from keepstep.commit.layout import (
    MANIFEST,
    PRUNED,
    QUARANTINE,
    CheckpointId,
    new_attempt,
    parse_pruned,
    pruned_key,
    quarantine_key,
)
from keepstep.commit.lineage import claims_on_line, list_generations, valid_line
from keepstep.commit.pins import pinned, read_pins
from keepstep.commit.retention import (
    COMMITTED_ONLY,
    Candidate,
    Decision,
    Extent,
    Facts,
    plan_retention,
)
from keepstep.commit.starting import starts_under_way
from keepstep.commit.verify import Damage, check_presence
from keepstep.config.keep import KeepPolicy
from keepstep.errors import (
    CoordinationError,
    CorruptCheckpointError,
    FencedError,
    ObjectNotFound,
    StorageError,
)
from keepstep.storage.base import Storage

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a decision to remove rests on, beside the checkpoints themselves."""

    newest_generation: int
    starts: tuple[str, ...]
    pinned: frozenset[CheckpointId]
    quarantined: frozenset[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a prune would do."""

    decisions: tuple[Decision, ...]
    """On every attempt, oldest step first."""
    leftovers: tuple[str, ...]
    """Marks of removals that are complete."""
    surroundings: Surroundings

    @property
    def removed(self) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if not decision.is_kept)


class Pruner:
    """Removes what a policy does not keep. Remembers what manifests say.

    Args:
        generation: Of the job this works for: once a newer one has started, nothing is removed.
    """

    def __init__(self, storage: Storage, *, generation: int | None = None) -> None:
        self._storage = storage
        self._catalog = Catalog(storage)
        self._generation = generation
        self._facts: dict[CheckpointId, Facts] = {}

    def prune(self, policy: KeepPolicy, extent: Extent = COMMITTED_ONLY) -> Plan:
        """Plan, and carry it out; what was done.

        *Durability:* what was removed does not come back. *Raises:* as :meth:`plan`;
        ``CoordinationError`` if a start is under way: nothing was removed.
        """
        for _ in range(_TRIES):
            plan = self.plan(policy, extent)
            if self._carry_out(plan):
                return plan
        raise CoordinationError(
            f"{self._storage.uri} changes too fast to prune: jobs start, or pins come and go; "
            "try again later"
        )

    def plan(self, policy: KeepPolicy, extent: Extent = COMMITTED_ONLY) -> Plan:
        """What a prune would do now. Nothing is written.

        *Raises:* ``StorageError``, ``CorruptCheckpointError`` of a claim,
        ``UnsupportedFormatError``: what cannot be read cannot be decided on; ``FencedError``.
        """
        surroundings = self._surroundings()
        marks = [info.key for info in self._storage.list(PRUNED)]
        entries = self._catalog.entries()
        self._facts = {e.id: facts for e in entries if (facts := self._facts_of(e)) is not None}
        claims = claims_on_line(self._storage)
        newest_claim, line = max(claims, default=0), valid_line(claims)
        newest, unverified = self._newest_verified(entries)
        protected: dict[CheckpointId, list[str]] = {id: [why] for id, why in unverified.items()}
        if newest is not None:
            protected.setdefault(newest, []).append("the newest verified one")
        if claims and (source := claims[newest_claim].resumed_from) is not None:
            protected.setdefault(source, []).append(f"generation {newest_claim} resumed from it")
        for pin in read_pins(self._storage).values():
            protected.setdefault(pin.checkpoint, []).append(str(pin))
        decisions = plan_retention(
            [
                Candidate(
                    e.id, e.status, self._facts.get(e.id), _may_commit(e.id, newest_claim, line)
                )
                for e in entries
            ],
            policy,
            protected,
            newest_verified=newest,
            extent=extent,
        )
        there = {entry.id for entry in entries}
        leftovers = tuple(key for key in marks if parse_pruned(key) not in there)
        return Plan(tuple(decisions), leftovers, surroundings)

    def _surroundings(self) -> Surroundings:
        storage = self._storage
        starts = starts_under_way(storage)
        newest = max(list_generations(storage), default=0)
        if self._generation is not None and newest != self._generation:
            raise FencedError(
                f"generation {newest} has taken over {storage.uri}; nothing is removed",
                generation=self._generation,
            )
        quarantined = frozenset(info.key for info in storage.list(QUARANTINE))
        return Surroundings(newest, starts, pinned(storage), quarantined)

    def _facts_of(self, entry: Entry) -> Facts | None:
        """``None`` if there is no manifest that can be read."""
        if not entry.has_manifest:
            return None
        if entry.id in self._facts:
            return self._facts[entry.id]
        try:
            manifest = self._catalog.manifest(entry.id)
        except (CorruptCheckpointError, ObjectNotFound):
            return None
        created = datetime.fromisoformat(manifest.created)
        return Facts(created, manifest.metrics, manifest.tags, manifest.total_bytes)

    def _newest_verified(
        self, entries: Iterable[Entry]
    ) -> tuple[CheckpointId | None, Mapping[CheckpointId, str]]:
        """And why newer ones are not."""
        unverified: dict[CheckpointId, str] = {}
        for entry in sorted(entries, key=lambda entry: entry.id, reverse=True):
            if entry.status is not Status.COMMITTED or entry.id not in self._facts:
                continue
            damages = self._damages(entry.id)
            if not damages:
                return entry.id, unverified
            unverified[entry.id] = f"damaged: {damages[0]}"
        return None, unverified

    def _damages(self, checkpoint: CheckpointId) -> list[Damage]:
        try:
            return check_presence(self._storage, self._catalog.manifest(checkpoint))
        except (CorruptCheckpointError, ObjectNotFound) as error:
            return [Damage(error.key or "", str(error))]

    def _carry_out(self, plan: Plan) -> bool:
        """Remove; or nothing, and ``False``, if the surroundings have changed since."""
        if plan.removed and plan.surroundings.starts:
            raise CoordinationError(
                f"a job is starting on {self._storage.uri} ({', '.join(plan.surroundings.starts)})"
                " and may go on from any checkpoint; prune once it trains. If that start has died, "
                "the next one clears its mark, or delete it"
            )
        of_status = {decision.id: decision.status for decision in plan.removed}
        doomed = [id for id, status in of_status.items() if status is not Status.UNCOMMITTED]
        if not self._condemn(doomed, plan.surroundings):
            return False
        self._storage.delete([id.key(MANIFEST) for id in doomed])
        for id, status in of_status.items():
            self._remove_objects(id, is_checkpoint=status is not Status.UNCOMMITTED)
        # Marks go last, those of a prune that died before it was through too.
        gone = set(doomed)
        marks = [info.key for info in self._storage.list(PRUNED) if parse_pruned(info.key) in gone]
        self._storage.delete([*marks, *plan.leftovers])
        return True

    def _condemn(self, doomed: list[CheckpointId], surroundings: Surroundings) -> bool:
        """Put up marks; take them down again if anything has changed that matters."""
        word = new_attempt()
        marks = [pruned_key(id, word) for id in doomed]
        try:
            for mark in marks:
                self._storage.put(mark, b"")
            is_agreed = not marks or self._surroundings() == surroundings
        except BaseException:
            with suppress(StorageError):  # the first error counts; what is left is taken up later
                self._storage.delete(marks)
            raise
        if not is_agreed:
            self._storage.delete(marks)
        return is_agreed

    def _remove_objects(self, id: CheckpointId, *, is_checkpoint: bool) -> None:
        keys = [info.key for info in self._storage.list(id.prefix)]
        if is_checkpoint:
            keys.append(quarantine_key(id))
        elif id.key(MANIFEST) in keys:
            return  # it has committed late; superseded, it is for another prune to judge
        self._storage.delete(keys)


def _may_commit(
    attempt: CheckpointId, newest_generation: int, line: Mapping[int, int | None]
) -> bool:
    """Whether it is under way for all we know, or a late commit of it would count."""
    last_step = line.get(attempt.generation, -1)
    would_count = last_step is None or attempt.step <= last_step
    return would_count or attempt.generation >= newest_generation
