"""The life of a resume: choose, compare, load, verify, agree; or set aside and take an older one.

Everything that decides is decided once, by the coordinator, or by all ranks together: two ranks
never load different checkpoints.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol

from keepstep.checkpoint.engine import (
    Loadable,
    check_digests,
    finish_load,
    live_digests,
    plan_load,
)
from keepstep.checkpoint.fit import Fit, fit_state
from keepstep.checkpoint.mismatch import Difference
from keepstep.checkpoint.planned import PlannedLoad
from keepstep.checkpoint.reader import ShardReader, Snapshot, read_indexes
from keepstep.checkpoint.selection import Selection
from keepstep.checkpoint.sharing import read_together
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import MANIFEST, CheckpointId, index_filename
from keepstep.commit.lineage import claim_generation
from keepstep.commit.manifest import Manifest
from keepstep.commit.ranges import merged
from keepstep.commit.verified import unread
from keepstep.commit.verify import (
    Damage,
    check_blocks,
    check_metadata,
    is_damaged,
    is_vouched_for,
)
from keepstep.config import explain_change
from keepstep.elastic.control_group import ControlGroup, raise_first
from keepstep.errors import (
    ConfigError,
    CoordinationError,
    CorruptCheckpointError,
    KeepstepError,
    ObjectNotFound,
    StorageUnavailable,
)
from keepstep.session.choosing import Chooser, all_damaged
from keepstep.session.results import Lost, Skipped
from keepstep.state.app_state import RANKS
from keepstep.storage.base import Storage
from keepstep.world import World

_WHOLE = Selection()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that is now in the tracked objects of all ranks."""

    manifest: Manifest
    state_digest: str
    """Of what is in the objects."""
    left: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the ranks agreed on."""

    loaded: Loaded | None
    """``None`` for a fresh start."""
    generation: int
    nonce: str
    skipped: tuple[Skipped, ...]
    lost: Lost | None
    left: tuple[Difference, ...]
    """What stays as it was built, because it does not fit."""


class Resumable(Loadable, Protocol):
    """What is resumed; ``state.AppState`` is one."""

    def common_dict(self) -> dict[str, Any]: ...

    def steady(self) -> AbstractContextManager[None]: ...

    def load_rng(self, loaded: Mapping[str, Any]) -> None: ...

    def check_restored(self, loaded: Mapping[str, Any], *, with_rng: bool) -> None: ...

    def derive_rng(self, step: int) -> None: ...


class Resumer:
    """One resume of one process group.

    *Ranks:* one object each; :meth:`run` is collective.
    """

    def __init__(
        self,
        storage: Storage,
        state: Resumable,
        *,
        run: str,
        world: World,
        control: ControlGroup,
        newest_generation: int,
        resume: str | int,
        mathematics: Mapping[str, Any] | None,
        accept_change: bool,
        read_once: bool = False,
        selection: Selection = _WHOLE,
        start_afresh: Callable[[], tuple[Difference, ...]] = tuple,
        steps_over: bool = False,
    ) -> None:
        self._storage = storage
        self._catalog = Catalog(storage)
        self._chooser = Chooser(storage)
        self._state = state
        self._run = run
        self._world = world
        self._control = control
        self._newest_generation = newest_generation
        self._resume = resume
        self._mathematics = mathematics
        self._accept_change = accept_change
        self._read_once = read_once and world.world_size > 1
        self._selection = selection
        self._start_afresh = start_afresh
        self._steps_over = steps_over

    def run(self) -> Resumed:
        """Restore the newest checkpoint that verifies, and claim the next generation from it.

        *Ranks:* collective. *Raises:* the same error on all ranks; see docs/errors.md.
        """
        choice = self._control.decide(lambda: self._chooser.choose(self._resume))
        stepped_over = self._step_over(choice.candidates)
        loaded, skipped = self._load_first_good(choice.candidates, stepped_over)
        left = loaded.left if loaded else self._warm_start()
        manifest = loaded.manifest if loaded else None
        lost = self._control.decide(lambda: self._chooser.lost_work(manifest))
        generation = self._control.decide(
            lambda: claim_generation(
                self._storage,
                newest_seen=self._newest_generation,
                world_size=self._world.world_size,
                resumed_from=manifest.id if manifest else None,
            )
        )
        return Resumed(loaded, generation.number, generation.nonce, tuple(skipped), lost, left)

    def _warm_start(self) -> tuple[Difference, ...]:
        """Begin with weights from elsewhere, if that is wanted; returns what does not fit."""
        left: list[Difference] = []
        self._control.succeed(lambda: left.extend(self._start_afresh()))
        return tuple(left)

    def _step_over(self, candidates: tuple[CheckpointId, ...]) -> list[Skipped]:
        """Set the newest aside, if any rank's launcher says so and there is an older one."""
        (is_asked,) = self._control.largest([self._steps_over])
        if not is_asked or len(candidates) < 2 or isinstance(self._resume, int):
            return []
        skipped = self._control.decide(partial(self._chooser.step_over, candidates[0]))
        return [skipped] if skipped else []

    def _load_first_good(
        self, candidates: tuple[CheckpointId, ...], stepped_over: list[Skipped]
    ) -> tuple[Loaded | None, list[Skipped]]:
        skipped = [*stepped_over]
        for candidate in candidates[len(stepped_over) :]:
            if skipped:
                headless = partial(self._chooser.set_aside_headless, above=candidate)
                skipped += self._control.decide(headless)
            outcome = self._load(candidate)
            if isinstance(outcome, Loaded):
                return outcome, skipped
            skipped.append(outcome)
            self._control.decide(
                partial(self._chooser.set_aside, outcome, newest_generation=self._newest_generation)
            )
        if skipped:
            raise all_damaged(self._storage, skipped)
        return None, skipped

    def _load(self, candidate: CheckpointId) -> Loaded | Skipped:
        """Load one checkpoint on all ranks, or say what is wrong with it on any rank."""
        planned: list[PlannedLoad] = []
        with self._state.steady():
            opened = self._open(candidate)
            if isinstance(opened, str):
                return Skipped(candidate, opened)
            snapshot, fit = opened
            keeps_rng = self._keeps_rng(snapshot, fit)
            reader = ShardReader(self._storage, snapshot)
            self._control.succeed(
                lambda: planned.append(plan_load(reader, self._state, fit, with_rng=keeps_rng))
            )
        damage = self._read(candidate, planned[0], reader) or self._verify_rest(snapshot, reader)
        if damage is not None:
            return Skipped(candidate, damage)
        self._control.succeed(lambda: finish_load(planned[0], self._state, fit))
        state_digest = self._prove_restored(snapshot, fit)
        # Of a device that was not there when it was saved, no generator is loaded.
        self._state.derive_rng(snapshot.manifest.step)
        if keeps_rng:
            self._state.load_rng(planned[0].template)
        self._control.succeed(
            lambda: self._state.check_restored(planned[0].template, with_rng=keeps_rng)
        )
        return Loaded(snapshot.manifest, state_digest, fit.left)

    def _keeps_rng(self, snapshot: Snapshot, fit: Fit) -> bool:
        """Whether random generators continue, or are derived from the step."""
        is_same_world = snapshot.manifest.world_size == self._world.world_size
        return is_same_world and any(path[0] == RANKS for path in fit.contents)

    def _open(self, candidate: CheckpointId) -> tuple[Snapshot, Fit] | str:
        """Everything that can be said before a tensor is touched; or what is damaged."""
        found: list[tuple[Manifest, dict[int, bytes]]] = []
        damage = self._together(candidate, lambda: found.append(self._read_records(candidate)))
        if damage is not None:
            return damage
        manifest, indexes = found[0]
        if self._shares_indexes(manifest):
            indexes = dict(chain.from_iterable(map(dict.items, self._control.gather(indexes))))
            self._control.succeed(lambda: _check_received(manifest, indexes))
        opened: list[tuple[Snapshot, Fit]] = []
        damage = self._together(
            candidate, lambda: opened.append(self._compare(Snapshot.parse(manifest, indexes)))
        )
        return damage if damage is not None else opened[0]

    def _read_records(self, candidate: CheckpointId) -> tuple[Manifest, dict[int, bytes]]:
        """The manifest, and the indexes: all, or this rank's share if each is read by one rank."""
        manifest = self._catalog.manifest(candidate)
        if manifest.run != self._run:
            key = candidate.key(MANIFEST)
            raise CorruptCheckpointError(f"{key} belongs to run {manifest.run}", key=key)
        self._check_mathematics(manifest)
        if self._world.is_coordinator:
            _raise_damage(check_metadata(self._storage, manifest))
        ranks = range(manifest.world_size)
        mine = ranks[self._world.rank :: self._world.world_size]
        shared = self._shares_indexes(manifest)
        return manifest, read_indexes(self._storage, manifest, mine if shared else ranks)

    def _shares_indexes(self, manifest: Manifest) -> bool:
        """Whether each index is read by one rank. A gather takes what is largest times the ranks:
        with more of these than of indexes that would be more than all of them.
        """
        return self._read_once and manifest.world_size >= self._world.world_size

    def _compare(self, snapshot: Snapshot) -> tuple[Snapshot, Fit]:
        """What fits of it."""
        manifest = snapshot.manifest
        # A checkpoint of a job that made the same choice is as this one wants it already.
        is_adapted = manifest.adapted == self._selection.digest
        selection = Selection() if is_adapted else self._selection
        reader = ShardReader(self._storage, snapshot)
        return snapshot, fit_state(reader, self._state, selection, where=str(manifest.id))

    def _check_mathematics(self, manifest: Manifest) -> None:
        if not manifest.mathematics or self._mathematics is None or self._accept_change:
            return  # imported, or not asked for
        if (change := explain_change(manifest.mathematics, self._mathematics)) is not None:
            raise ConfigError(
                f"settings that alter the mathematics differ from those of {manifest.id}:\n"
                f"{change}\n"
                "Set them back, choose another uri for a new run, or go on with the change by "
                "--accept-change."
            )

    def _read(
        self, candidate: CheckpointId, planned: PlannedLoad, reader: ShardReader
    ) -> str | None:
        """Read what was planned, on all ranks; what is damaged, if anything is."""
        if self._read_once:
            return self._judge(candidate, read_together(planned, reader, self._control))
        return self._together(candidate, planned.read)

    def _verify_rest(self, snapshot: Snapshot, reader: ShardReader) -> str | None:
        """Read what no rank needed: a checkpoint that is resumed from is whole, every byte of it.

        After a change of the world size that is what belonged to single ranks.
        """
        verified = {file: merged(found) for file, found in reader.verified.items()}
        rest = unread(snapshot.files, self._control.gather(verified))
        mine = rest[self._world.rank :: self._world.world_size]
        return self._together(
            snapshot.manifest.id,
            lambda: _raise_damage(
                chain.from_iterable(
                    check_blocks(self._storage, snapshot.manifest, snapshot.files[file], numbers)
                    for file, numbers in mine
                )
            ),
        )

    def _prove_restored(self, snapshot: Snapshot, fit: Fit) -> str:
        """Compare the content of what is now in the objects with that of what was saved."""
        common = self._state.common_dict()
        live = self._control.gather(live_digests(common, fit))
        digests: list[str] = []
        self._control.succeed(
            lambda: digests.append(check_digests(snapshot.frames, live, fit, is_common=is_common))
        )
        return digests[0]

    def _together(self, candidate: CheckpointId, act: Callable[[], Any]) -> str | None:
        """Act on all ranks; what is damaged, if that is what any of them found.

        *Raises:* any other error that any rank found, on all ranks; ``StorageUnavailable`` if the
        coordinator sees no damage where another rank does.
        """
        return self._judge(candidate, self._control.attempt(act))

    def _judge(self, candidate: CheckpointId, problems: Mapping[int, KeepstepError]) -> str | None:
        """What is damaged, if that is what any rank found; the same on every rank.

        *Raises:* as :meth:`_together`.
        """
        damage = {
            rank: error
            for rank, error in problems.items()
            if isinstance(error, CorruptCheckpointError | ObjectNotFound)
        }
        raise_first({rank: error for rank, error in problems.items() if rank not in damage})
        if damage:
            self._control.decide(lambda: self._confirm(candidate, damage))
        reasons = list(dict.fromkeys(_reason(error) for error in damage.values()))
        return "; ".join(reasons) or None

    def _confirm(self, candidate: CheckpointId, damage: Mapping[int, KeepstepError]) -> None:
        """A node that lost its mount must not set aside the whole run. *Ranks:* coordinator."""
        if self._world.rank in damage:
            return
        for rank, error in damage.items():
            if not is_damaged(self._storage, candidate, error):
                raise StorageUnavailable(
                    f"rank {rank} finds damage where rank 0 finds none: {_reason(error)}. "
                    f"Do all ranks share {self._storage.uri}?",
                    rank=rank,
                )


def is_common(name: str) -> bool:
    """Whether a state entry, by name, belongs to all ranks together."""
    return not name.startswith(f"{RANKS}.")


def _check_received(manifest: Manifest, indexes: Mapping[int, bytes]) -> None:
    """*Raises:* ``CoordinationError`` if an index is not what a rank has read and found good."""
    for rank, data in indexes.items():
        if not is_vouched_for(manifest, index_filename(rank), data):
            raise CoordinationError(f"the index of rank {rank} was damaged between two ranks")


def _raise_damage(damages: Iterable[Damage]) -> None:
    for damage in damages:
        raise CorruptCheckpointError(str(damage), key=damage.key, block=damage.block)


def _reason(error: KeepstepError) -> str:
    return f"{error.key} is missing" if isinstance(error, ObjectNotFound) else str(error.args[0])
