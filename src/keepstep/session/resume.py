"""The life of a resume: choose, compare, load, verify, agree; else set aside and take the next
older.

Everything that decides is decided once, by the coordinator, or by all ranks together: two ranks
never load different checkpoints.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from keepstep.checkpoint.engine import (
    check_digests,
    check_state_fits,
    is_sharded,
    live_digests,
    load_state,
)
from keepstep.checkpoint.reader import ShardReader, Snapshot
from keepstep.commit.catalog import Catalog, Entry, Status
from keepstep.commit.layout import CheckpointId, ledger_key
from keepstep.commit.lineage import claim_generation
from keepstep.commit.manifest import Manifest
from keepstep.config import explain_change
from keepstep.elastic.control_group import ControlGroup
from keepstep.errors import (
    AllCheckpointsDamagedError,
    ConfigError,
    CorruptCheckpointError,
    KeepstepError,
    NoCheckpointError,
    ObjectNotFound,
)
from keepstep.observability.ledger import read_ledger
from keepstep.session.results import Lost, Skipped
from keepstep.state.app_state import RANKS, AppState
from keepstep.storage.base import Storage
from keepstep.world import World

logger = logging.getLogger("keepstep.resume")


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the ranks agreed on."""

    manifest: Manifest | None
    """Of the checkpoint that was loaded; ``None`` for a fresh start."""
    generation: int
    nonce: str
    skipped: tuple[Skipped, ...]
    lost: Lost | None


@dataclass(frozen=True, slots=True)
class _Choice:
    candidates: tuple[CheckpointId, ...]
    """Newest first; empty for a fresh start."""
    newest_generation: int


class Resumer:
    """One resume of one process group.

    *Ranks:* one object each; :meth:`run` is collective.
    """

    def __init__(
        self,
        storage: Storage,
        state: AppState,
        *,
        world: World,
        control: ControlGroup,
        resume: str | int,
        mathematics: Mapping[str, Any] | None,
        accept_change: bool,
    ) -> None:
        self._storage = storage
        self._catalog = Catalog(storage)
        self._state = state
        self._world = world
        self._control = control
        self._resume = resume
        self._mathematics = mathematics
        self._accept_change = accept_change

    def run(self) -> Resumed:
        """Restore the newest checkpoint that verifies, and claim the next generation from it.

        *Ranks:* collective. *Raises:* the same error on all ranks; see docs/errors.md.
        """
        choice = self._control.decide(self._choose)
        manifest, skipped = self._load_first_good(choice.candidates)
        lost = self._control.decide(lambda: self._lost_work(manifest))
        generation = self._control.decide(
            lambda: claim_generation(
                self._storage,
                newest_seen=choice.newest_generation,
                world_size=self._world.world_size,
                resumed_from=manifest.id if manifest else None,
            )
        )
        return Resumed(manifest, generation.number, generation.nonce, tuple(skipped), lost)

    def _choose(self) -> _Choice:
        """*Ranks:* coordinator."""
        newest = max(self._catalog.generations(), default=0)
        entries = self._set_aside_headless(self._catalog.entries(), newest)
        good = tuple(e.id for e in reversed(entries) if e.status is Status.COMMITTED)
        damaged = [e for e in entries if e.status is Status.QUARANTINED]
        if self._resume == "never" and (good or damaged):
            raise ConfigError(
                f'resume = "never", but {self._storage.uri} holds checkpoints up to step '
                f"{entries[-1].id.step}; choose another uri for a new run"
            )
        if isinstance(self._resume, int):
            good = self._exactly(self._resume, good)
        elif not good and damaged:
            raise _all_damaged(self._storage, [Skipped(e.id, e.reason or "") for e in damaged])
        elif not good and self._resume == "must":
            raise NoCheckpointError(
                f'resume = "must", but {self._storage.uri} holds no checkpoint{_nearby(entries)}'
            )
        return _Choice(good, newest)

    def _exactly(self, step: int, good: tuple[CheckpointId, ...]) -> tuple[CheckpointId, ...]:
        chosen = tuple(candidate for candidate in good if candidate.step == step)
        if not chosen:
            steps = ", ".join(str(candidate.step) for candidate in reversed(good)) or "none"
            raise NoCheckpointError(
                f"{self._storage.uri} has no checkpoint of step {step} to resume from; there are: "
                f"{steps}"
            )
        return chosen

    def _set_aside_headless(self, entries: list[Entry], newest: int) -> list[Entry]:
        """Quarantine attempts without a manifest that the ledger knows to have been committed.

        Without the ledger they look like attempts that never ended, and would be passed over in
        silence.
        """
        committed = {
            event.get("checkpoint") for event in self._ledger(newest) if event["event"] == "save"
        }
        headless = [
            entry.id
            for entry in entries
            if entry.status is Status.UNCOMMITTED and entry.id.name in committed
        ]
        for checkpoint in headless:
            reason = (
                f"{checkpoint.key('manifest.json')} is missing, but the ledger records its commit"
            )
            self._set_aside(Skipped(checkpoint, reason))
        return self._catalog.entries() if headless else entries

    def _load_first_good(
        self, candidates: tuple[CheckpointId, ...]
    ) -> tuple[Manifest | None, list[Skipped]]:
        skipped: list[Skipped] = []
        for candidate in candidates:
            outcome = self._load(candidate)
            if isinstance(outcome, Manifest):
                return outcome, skipped
            skipped.append(outcome)
            self._control.decide(partial(self._set_aside, outcome))
        if skipped:
            raise _all_damaged(self._storage, skipped)
        return None, skipped

    def _load(self, candidate: CheckpointId) -> Manifest | Skipped:
        """Load one checkpoint on all ranks; the manifest, or what is wrong with it on any rank."""
        opened: list[Snapshot] = []
        damage = self._together(lambda: opened.append(self._open_and_compare(candidate)))
        if damage is not None:
            return Skipped(candidate, damage)
        snapshot = opened[0]
        same_world = snapshot.manifest.world_size == self._world.world_size
        loaded: list[dict[str, Any]] = []
        reader = ShardReader(self._storage, snapshot)
        damage = self._together(
            lambda: loaded.append(load_state(reader, self._state, with_rng=same_world))
        )
        if damage is not None:
            return Skipped(candidate, damage)
        self._prove_restored(snapshot)
        if same_world:
            self._state.load_rng(loaded[0])
        else:
            self._state.derive_rng(snapshot.manifest.step)
        return snapshot.manifest

    def _open_and_compare(self, candidate: CheckpointId) -> Snapshot:
        """Everything that can be said before a tensor is touched."""
        manifest = self._catalog.manifest(candidate)
        self._check_mathematics(manifest)
        snapshot = Snapshot.open(self._storage, manifest)
        check_state_fits(ShardReader(self._storage, snapshot), self._state, where=str(candidate))
        return snapshot

    def _check_mathematics(self, manifest: Manifest) -> None:
        if self._mathematics is None or self._accept_change:
            return
        if (change := explain_change(manifest.mathematics, self._mathematics)) is not None:
            raise ConfigError(
                "settings that alter the mathematics differ from those of "
                f"{manifest.id}:\n{change}\n"
                "Set them back, choose another uri for a new run, or go on with the change by "
                "--accept-change."
            )

    def _prove_restored(self, snapshot: Snapshot) -> None:
        """Compare the content of what is now in the objects with that of what was saved."""
        common = self._state.common_dict()
        live = self._control.gather(live_digests(common))
        problems = self._control.attempt(
            lambda: check_digests(
                snapshot.frames, live, is_sharded=is_sharded(common), is_common=is_common
            )
        )
        _raise_first(problems)

    def _together(self, act: Callable[[], Any]) -> str | None:
        """Act on all ranks; what is damaged, if that is what any rank found.

        Other errors are raised.
        """
        problems = self._control.attempt(act)
        damage = {
            rank: error
            for rank, error in problems.items()
            if isinstance(error, CorruptCheckpointError | ObjectNotFound)
        }
        _raise_first({rank: error for rank, error in problems.items() if rank not in damage})
        reasons = list(dict.fromkeys(_reason(error) for error in damage.values()))
        return "; ".join(reasons) or None

    def _set_aside(self, damaged: Skipped) -> None:
        """*Ranks:* coordinator."""
        logger.warning("%s is damaged and set aside: %s", damaged.checkpoint, damaged.reason)
        self._catalog.quarantine(damaged.checkpoint, damaged.reason)

    def _lost_work(self, manifest: Manifest | None) -> Lost | None:
        """From the ledgers of earlier generations. *Ranks:* coordinator."""
        committed_step = manifest.step if manifest else 0
        for generation in reversed(self._catalog.generations()):
            steps = [event for event in self._ledger(generation) if event["event"] == "step"]
            if steps:
                return _lost(steps, committed_step)
        return None

    def _ledger(self, generation: int) -> list[dict[str, Any]]:
        with suppress(ObjectNotFound):
            return read_ledger(self._storage.get(ledger_key(generation, 0)))
        return []


def is_common(name: str) -> bool:
    """Whether a state entry, by name, belongs to all ranks together."""
    return not name.startswith(f"{RANKS}.")


def _lost(steps: list[dict[str, Any]], committed_step: int) -> Lost:
    last = steps[-1]
    earlier = [event for event in steps if event["step"] <= committed_step]
    # A generation that resumed at the committed step has no record of it: its first step stands in.
    base = earlier[-1] if earlier else steps[0]
    per_step = int(last["samples"]) // max(1, int(last["step"]))
    redo = max(0, int(last["step"]) - committed_step)
    return Lost(
        last_step=max(int(last["step"]), committed_step),
        committed_step=committed_step,
        samples=redo * per_step,
        seconds=round(float(last["time"]) - float(base["time"]), 3) if redo else 0.0,
    )


def _reason(error: KeepstepError) -> str:
    return f"{error.key} is missing" if isinstance(error, ObjectNotFound) else str(error.args[0])


def _raise_first(problems: Mapping[int, KeepstepError]) -> None:
    for rank in sorted(problems):
        raise problems[rank]


def _all_damaged(storage: Storage, skipped: list[Skipped]) -> AllCheckpointsDamagedError:
    listed = "\n".join(f"  {s.checkpoint}: {s.reason}" for s in skipped)
    return AllCheckpointsDamagedError(
        f"every checkpoint in {storage.uri} is damaged:\n{listed}\n"
        "Nothing was overwritten. Repair the storage and delete the marks in quarantine/, or "
        "start a new "
        "run under another uri."
    )


def _nearby(entries: list[Entry]) -> str:
    if not entries:
        return ""
    counts = ", ".join(f"step {e.id.step} ({e.status})" for e in entries[-3:])
    return f"; it has {counts}"
