"""What the coordinator decides at a resume: which checkpoints to try, and what was lost."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from keepstep.commit.catalog import Catalog, Entry, Status
from keepstep.commit.layout import MANIFEST, CheckpointId
from keepstep.commit.lineage import check_not_fenced, read_generation
from keepstep.commit.manifest import Manifest
from keepstep.errors import (
    AllCheckpointsDamagedError,
    ConfigError,
    NoCheckpointError,
)
from keepstep.session.history import last_events
from keepstep.session.results import Lost, Skipped
from keepstep.storage.base import Storage

logger = logging.getLogger("keepstep.resume")

_STEPPED_OVER = "starts from it ended before their first step; its launcher said to step over it"


@dataclass(frozen=True, slots=True)
class Choice:
    """What to try."""

    candidates: tuple[CheckpointId, ...]
    """Newest first; empty for a fresh start."""


class Chooser:
    """*Ranks:* coordinator."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._catalog = Catalog(storage)

    def choose(self, resume: str | int) -> Choice:
        """The checkpoints to try, by the rule ``resume``.

        *Raises:* ``ConfigError``, ``NoCheckpointError``, ``AllCheckpointsDamagedError``.
        """
        self.set_aside_headless(above=self._catalog.latest())
        entries = self._catalog.entries()
        good = tuple(e.id for e in reversed(entries) if e.status is Status.COMMITTED)
        damaged = [e for e in entries if e.status is Status.QUARANTINED]
        if resume == "never" and (good or damaged):
            raise ConfigError(
                f'resume = "never", but {self._storage.uri} holds checkpoints up to step '
                f"{entries[-1].id.step}; choose another uri for a new run"
            )
        if isinstance(resume, int):
            good = self._exactly(resume, good)
        elif not good and damaged:
            raise all_damaged(self._storage, [Skipped(e.id, e.reason or "") for e in damaged])
        elif not good and resume == "must":
            raise NoCheckpointError(
                f'resume = "must", but {self._storage.uri} holds no checkpoint{_nearby(entries)}'
            )
        return Choice(good)

    def set_aside(self, damaged: Skipped, *, newest_generation: int) -> None:
        """Quarantine a checkpoint. *Durability:* the mark is durable once this returns.

        *Raises:* ``FencedError`` if a newer generation has started: its prunes may be removing what
        looks damaged from here.
        """
        check_not_fenced(self._storage, newest_generation)
        self._mark(damaged)

    def step_over(self, newest: CheckpointId) -> Skipped | None:
        """Quarantine what may verify, but has let nobody start. *Durability:* as above.

        Once, until there is another commit: if it did not help, the checkpoint was not the reason,
        and the next one is not either.
        """
        for entry in self._catalog.entries():
            if entry.id > newest and entry.reason == _STEPPED_OVER:
                logger.warning("%s was stepped over already, which did not help", entry.id)
                return None
        logger.warning("%s is set aside: %s", newest, _STEPPED_OVER)
        self._catalog.quarantine(newest, _STEPPED_OVER)
        return Skipped(newest, _STEPPED_OVER)

    def set_aside_headless(self, *, above: CheckpointId | None) -> list[Skipped]:
        """Quarantine attempts that lost their manifest, of steps above the one to be loaded.

        They look like attempts that never ended, and would be passed over in silence.
        """
        recorded = [suspect for suspect in self._unfinished(above) if self._was_committed(suspect)]
        # Looked at again: what a job that still trains had under way may have been committed since.
        lost = set(self._unfinished(above)) if recorded else set()
        headless = [
            Skipped(suspect, f"{suspect.key(MANIFEST)} is missing, but its commit is on record")
            for suspect in recorded
            if suspect in lost
        ]
        for skipped in headless:
            self._mark(skipped)
        return headless

    def lost_work(self, manifest: Manifest | None) -> Lost | None:
        """From the ledger of the last generation that ran a step."""
        committed_step = manifest.step if manifest else 0
        for generation in reversed(self._catalog.generations()):
            events = last_events(self._storage, generation)
            steps = [event for event in events if event["event"] == "step"]
            if steps:
                try:
                    return _lost(steps, committed_step)
                except (KeyError, TypeError, ValueError) as error:  # a report, and no more
                    logger.warning("the ledger of generation %d is damaged: %r", generation, error)
                    return None
        return None

    def _exactly(self, step: int, good: Iterable[CheckpointId]) -> tuple[CheckpointId, ...]:
        chosen = tuple(candidate for candidate in good if candidate.step == step)
        if not chosen:
            steps = ", ".join(str(step) for step in sorted({c.step for c in good})) or "none"
            raise NoCheckpointError(
                f"{self._storage.uri} has no checkpoint of step {step} to resume from; "
                f"there are: {steps}"
            )
        return chosen

    def _mark(self, damaged: Skipped) -> None:
        logger.warning("%s is damaged and set aside: %s", damaged.checkpoint, damaged.reason)
        self._catalog.quarantine(damaged.checkpoint, damaged.reason)

    def _unfinished(self, above: CheckpointId | None) -> list[CheckpointId]:
        return [
            entry.id
            for entry in self._catalog.entries()
            if entry.status is Status.UNCOMMITTED and (above is None or entry.id.step > above.step)
        ]

    def _was_committed(self, attempt: CheckpointId) -> bool:
        """Whether its own generation's ledger, or a later generation's claim, says so."""
        events = last_events(self._storage, attempt.generation)
        if any(e["event"] == "save" and e.get("checkpoint") == attempt.name for e in events):
            return True
        later = (number for number in self._catalog.generations() if number > attempt.generation)
        return any(read_generation(self._storage, n).resumed_from == attempt for n in later)


def all_damaged(storage: Storage, skipped: Iterable[Skipped]) -> AllCheckpointsDamagedError:
    """The error for a run whose every checkpoint is damaged."""
    listed = "\n".join(f"  {s.checkpoint}: {s.reason}" for s in skipped)
    return AllCheckpointsDamagedError(
        f"every checkpoint in {storage.uri} that could be resumed from is damaged:\n{listed}\n"
        "Nothing was overwritten. Repair the storage and delete the marks in quarantine/, or "
        "start a new run under another uri."
    )


def _lost(steps: list[dict[str, Any]], committed_step: int) -> Lost:
    last = steps[-1]
    earlier = [event for event in steps if event["step"] <= committed_step]
    # A generation that resumed at the committed step has no record of it: its first step stands in.
    base = earlier[-1] if earlier else steps[0]
    samples_per_step = int(last["samples"]) // max(1, int(last["step"]))
    redo = max(0, int(last["step"]) - committed_step)
    return Lost(
        last_step=max(int(last["step"]), committed_step),
        committed_step=committed_step,
        samples=redo * samples_per_step,
        seconds=round(float(last["time"]) - float(base["time"]), 3) if redo else 0.0,
    )


def _nearby(entries: list[Entry]) -> str:
    if not entries:
        return ""
    counts = ", ".join(f"step {e.id.step} ({e.status})" for e in entries[-3:])
    return f"; it has {counts}"
