"""One save, from the tracked objects to a committed checkpoint."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from keepstep.checkpoint.participant import TensorParticipant
from keepstep.commit.barrier import CommitBarrier, Store
from keepstep.commit.layout import CheckpointId
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.commit.protocol import Timeline, save
from keepstep.session.resume import is_common
from keepstep.state.app_state import AppState
from keepstep.storage.base import Storage
from keepstep.world import World


@dataclass(frozen=True, slots=True)
class Saved:
    """A save that succeeded."""

    checkpoint: CheckpointId
    seconds: Mapping[str, float]
    """Of each phase, on this rank."""
    manifest: Manifest | None
    """On the coordinator."""


class Saver:
    """Makes attempts for one generation of a run.

    *Ranks:* one object each; :meth:`save` is collective.
    """

    def __init__(
        self,
        storage: Storage,
        store: Store,
        *,
        world: World,
        run: str,
        generation: int,
        nonce: str,
        timeout_seconds: float,
    ) -> None:
        self._storage = storage
        self._store = store
        self._world = world
        self._run = run
        self._generation = generation
        self._nonce = nonce
        self._timeout_seconds = timeout_seconds
        self._attempts = 0

    def save(
        self,
        state: AppState,
        step: int,
        describe: Callable[[CheckpointId, tuple[ObjectRecord, ...], str], Manifest],
    ) -> Saved:
        """Commit the tracked objects as ``step``.

        Args:
            state: An error of an object's ``state_dict`` aborts the save on all ranks.
            describe: From the attempt, its objects and the state digest to the manifest.

        *Raises:* ``CommitError``, ``FencedError``: see :func:`keepstep.commit.protocol.save`.
        """
        attempt = self._next_attempt(step)
        timeline = Timeline(step)
        described: list[Manifest] = []

        def describe_attempt(objects: tuple[ObjectRecord, ...], state_digest: str) -> Manifest:
            described.append(describe(attempt, objects, state_digest))
            return described[0]

        participant = TensorParticipant(
            state.save_dict,
            storage=self._storage,
            attempt=attempt,
            world=self._world,
            describe=describe_attempt,
            from_coordinator=state.buffer_names,
            is_common=is_common,
        )
        barrier = CommitBarrier(
            self._store,
            world=self._world,
            scope=f"keepstep/{self._run}/{self._nonce}/{attempt.attempt}",
            step=step,
            timeout_seconds=self._timeout_seconds,
        )
        save(
            participant,
            attempt=attempt,
            storage=self._storage,
            barrier=barrier,
            world=self._world,
            timeline=timeline,
        )
        return Saved(attempt, timeline.seconds, described[0] if described else None)

    def _next_attempt(self, step: int) -> CheckpointId:
        """The same on all ranks, and no other try's: the nonce is this generation's alone."""
        self._attempts += 1
        digest = hashlib.sha256(f"{self._nonce}/{self._attempts}".encode()).hexdigest()
        # The number comes first: of two commits of one step, the later one sorts last.
        return CheckpointId(step, self._generation, f"{self._attempts % 65536:04x}{digest[:8]}")
