"""One save: begun by the training loop, carried through in the background."""

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from keepstep.checkpoint.participant import TensorParticipant, TrackedState
from keepstep.checkpoint.save_engine import SaveEngine, SaveMode
from keepstep.commit.barrier import CommitBarrier, Store
from keepstep.commit.layout import CheckpointId
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.commit.protocol import Attempt, Timeline
from keepstep.elastic.signals import leave
from keepstep.errors import CommitError, ExitCode, FencedError
from keepstep.phases import Phase
from keepstep.session.pacing import SaveCost
from keepstep.session.resume import is_common
from keepstep.storage.base import Storage
from keepstep.world import World

logger = logging.getLogger("keepstep.session")

Describe = Callable[[CheckpointId, tuple[ObjectRecord, ...], str], Manifest]
"""From the attempt, its objects and the state digest to the manifest."""

_FENCED_SECONDS = 30.0
"""A process that is fenced has nothing to do: so long it may take to find out."""


class Savable(Protocol):
    """What is saved; ``state.AppState`` is one."""

    def save_dict(self) -> dict[str, Any]: ...

    def buffer_names(self) -> set[str]: ...

    def guarded(self) -> Callable[[str], bool]: ...


class Save:
    """A save that was begun. It has two moments: ``staged`` and ``committed``."""

    def __init__(
        self,
        checkpoint: CheckpointId,
        participant: TensorParticipant,
        timeline: Timeline,
        *,
        is_in_background: bool,
    ) -> None:
        self.checkpoint = checkpoint
        """What it is to become."""
        self._participant = participant
        self._timeline = timeline
        self._is_in_background = is_in_background
        self.began_at = self.persisting_at = time.time()
        """When it was begun, and when what was staged began to be written; Unix seconds."""
        self.is_awaited = False
        """Whether this process has begun to wait for the outcome."""
        self._waited_seconds = 0.0
        self._error: BaseException | None = None
        self._is_over = threading.Event()
        self._last_resort: threading.Timer | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """How long each phase took on this rank; of those that are over."""
        return dict(self._timeline.seconds)

    @property
    def manifest(self) -> Manifest | None:
        """On the coordinator, once it was made."""
        return self._participant.published

    @property
    def cost(self) -> SaveCost:
        """What it cost this rank; once it is committed."""
        total = sum(self._timeline.seconds.values())
        if self._is_in_background:
            phases = self._timeline.seconds
            return SaveCost(phases[Phase.PLAN] + phases[Phase.STAGE] + self._waited_seconds, total)
        return SaveCost(total, total)

    @property
    def is_over(self) -> bool:
        """Whether the outcome is known on this rank."""
        return self._is_over.is_set()

    @property
    def has_failed(self) -> bool:
        """Whether it is over and the step is not committed."""
        return self.is_over and isinstance(self._error, CommitError)

    def staged(self) -> None:
        """Return once training may change the tensors again: it vouches that it has not yet.

        *Ranks:* local; in overlap mode a save is committed once all have called this.
        """
        start = time.monotonic()
        self._participant.vouch()
        self._waited_seconds += time.monotonic() - start

    def committed(self) -> CheckpointId:
        """Return the checkpoint once it is durable and in the history.

        *Ranks:* local; in overlap mode all ranks, or the others have to come to their next
        ``session.guard()`` within the timeout.
        *Blocks:* as long as every rank gives signs of life.
        *Raises:* ``CommitError`` if the step was not committed; ``FencedError``;
        ``CoordinationError`` if the process group's store is gone and storage does not know.
        """
        self.wait()
        if self._last_resort is not None:
            self._last_resort.cancel()
        if self._error is not None:
            raise self._error
        return self.checkpoint

    def wait(self, seconds: float | None = None) -> None:
        """Return once the outcome is known, whatever it is, or after so long.

        *Ranks:* as for :meth:`committed`.
        """
        self.staged()
        self.is_awaited = True
        self._is_over.wait(seconds)

    def spoil(self) -> None:
        """Abort it on all ranks unless :meth:`staged` was called: a step was taken without."""
        self._participant.spoil()

    def carry_out(self, attempt: Attempt, before_commit: Callable[[], None]) -> None:
        """Everything after staging. Raises nothing: :meth:`committed` does."""
        try:
            before_commit()
        except Exception:  # a save does not depend on it
            logger.exception("what precedes a commit has failed")
        self.persisting_at = time.time()
        try:
            attempt.persist()
        except BaseException as error:  # noqa: BLE001  # whoever asks for the outcome gets it
            self._error = error
            if isinstance(error, FencedError) and self._is_in_background:
                self._leave_unless_asked(error)
            if not threading.main_thread().is_alive():
                logger.warning("step=%d is not committed: %s", attempt.id.step, error)
        finally:
            self._participant.release()
            self._is_over.set()

    def _leave_unless_asked(self, error: FencedError) -> None:
        """The training loop may be waiting for ranks that went on without this one, for long."""
        message = f"{error}; training has not come to ask"
        self._last_resort = threading.Timer(_FENCED_SECONDS, leave, [ExitCode.FENCED, message])
        self._last_resort.daemon = True
        self._last_resort.start()

    def fail(self, error: CommitError) -> None:
        """There will be no checkpoint: planning failed."""
        self._error = error
        self._participant.release()
        self._is_over.set()


class Saver:
    """Makes attempts for one generation of a run.

    Args:
        before_commit: Called in the background of every save, before it is written.

    *Ranks:* one object each; :meth:`begin` is collective.
    """

    def __init__(
        self,
        storage: Storage,
        store: Store,
        *,
        mode: SaveMode,
        world: World,
        run: str,
        generation: int,
        nonce: str,
        timeout_seconds: float,
        deadline_seconds: float,
        before_commit: Callable[[], None],
        is_hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self._storage = storage
        self._store = store
        self._mode = mode
        self._engine = SaveEngine(mode, num_threads=storage.capabilities.concurrency)
        self._world = world
        self._run = run
        self._generation = generation
        self._nonce = nonce
        self._timeout_seconds = timeout_seconds
        self._deadline_seconds = deadline_seconds
        self._before_commit = before_commit
        self._is_hurried = is_hurried
        self._attempts = 0

    @property
    def allocations(self) -> int:
        """How often host memory was allocated for saving, so far."""
        return self._engine.allocations

    def begin(
        self,
        state: Savable,
        step: int,
        describe: Describe,
        *,
        deadline_seconds: float | None = None,
    ) -> Save:
        """Plan and stage; the rest follows in the background, or at once in sync mode.

        *Blocks:* until training may go on; in overlap mode tensors may not change before
        :meth:`Save.staged`.
        *Raises:* ``FencedError``, ``InternalError``; whatever else fails shows in the save.
        """
        timeline = Timeline(step)
        attempt_id = self._next_attempt(step)

        participant = TensorParticipant(
            self._engine,
            TrackedState(
                collect=state.save_dict,
                from_coordinator=state.buffer_names,
                is_common=is_common,
                guarded=state.guarded,
            ),
            storage=self._storage,
            attempt=attempt_id,
            world=self._world,
            describe=partial(describe, attempt_id),
        )
        is_in_background = self._mode is not SaveMode.SYNC
        save = Save(attempt_id, participant, timeline, is_in_background=is_in_background)
        attempt = Attempt(
            participant,
            id=attempt_id,
            storage=self._storage,
            barrier=self._barrier(save),
            world=self._world,
            timeline=timeline,
            deadline_seconds=min(self._deadline_seconds, deadline_seconds or math.inf),
        )
        try:
            attempt.prepare()
        except CommitError as error:
            save.fail(error)
            return save
        if is_in_background:
            # Not a daemon: an interpreter that ends without close() waits for it.
            name = f"keepstep-save-{step}"
            work = partial(save.carry_out, attempt, self._before_commit)
            thread = threading.Thread(target=work, name=name)
            with suppress(RuntimeError):  # no thread to be had: then without one
                thread.start()
                return save
        save.staged()
        save.carry_out(attempt, self._before_commit)
        return save

    def close(self) -> None:
        """Free threads and memory. *Ranks:* local; no save may be under way."""
        self._engine.close()

    def _barrier(self, save: Save) -> CommitBarrier:
        attempt = save.checkpoint
        return CommitBarrier(
            self._store,
            world=self._world,
            scope=f"keepstep/{self._run}/{self._nonce}/{attempt.attempt}",
            step=attempt.step,
            timeout_seconds=self._timeout_seconds,
            is_hurried=self._is_hurried,
            is_awaited=lambda: save.is_awaited or not threading.main_thread().is_alive(),
        )

    def _next_attempt(self, step: int) -> CheckpointId:
        """The same on all ranks, and no other try's: the nonce is this generation's alone."""
        self._attempts += 1
        digest = hashlib.sha256(f"{self._nonce}/{self._attempts}".encode()).hexdigest()
        # The number comes first: of two commits of one step, the later one sorts last.
        return CheckpointId(step, self._generation, f"{self._attempts % 65536:04x}{digest[:8]}")
