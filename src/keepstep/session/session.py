"""The session: one object per rank that keeps a loop's work."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

from keepstep import failpoints
from keepstep._version import __version__
from keepstep.checkpoint.participant import check_values
from keepstep.checkpoint.store import C10dStore
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import CheckpointId, ledger_key
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.config import Interval
from keepstep.elastic.control_group import ControlGroup
from keepstep.errors import CommitAborted, CommitError, ConfigError
from keepstep.observability.ledger import Ledger
from keepstep.session.reporting import (
    RESERVED_EVENTS,
    report_failed_save,
    report_restored,
    report_saved,
)
from keepstep.session.results import Restored, Save, Stop
from keepstep.session.resume import Resumed, Resumer
from keepstep.session.saving import Saver
from keepstep.state.app_state import AppState
from keepstep.storage.base import Storage
from keepstep.world import World

logger = logging.getLogger("keepstep.session")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What :func:`keepstep.open` was given; described there."""

    every: Interval
    resume: str | int
    seed: int
    mathematics: Mapping[str, Any] | None
    accept_change: bool
    config_digest: str | None
    parallel: Mapping[str, Any]
    samples_per_epoch: int | None
    timeout_seconds: float
    step_timeout_seconds: float
    failed_saves_allowed: int


class Session:
    """A run, from one rank's point of view. Made by :func:`keepstep.open`.

    *Ranks:* every public method is collective, except :meth:`track`, :meth:`record`,
    :meth:`request_stop` and the properties.
    """

    def __init__(self, storage: Storage, settings: Settings, world: World) -> None:
        self.world = world
        self.step = 0
        """Optimizer steps completed."""
        self.samples = 0
        """Samples consumed by the run, over all ranks."""
        self.tokens = 0
        """Tokens consumed by the run, over all ranks."""
        self.latest: CheckpointId | None = None
        """The newest checkpoint this session has restored or committed."""
        self._storage = storage
        self._settings = settings
        self._control = ControlGroup(world, timeout_seconds=settings.step_timeout_seconds)
        self._store = C10dStore(timeout_seconds=settings.timeout_seconds)
        self._state = AppState(rank=world.rank, seed=settings.seed)
        self._run = self._control.decide(self._open_run)
        self._generation: _Generation | None = None
        self._metrics: dict[str, float] = {}
        self._failed_saves = 0
        self._saved_at = time.monotonic()
        self._stop_reason: str | None = None

    @property
    def uri(self) -> str:
        """Where the run is kept."""
        return self._storage.uri

    @property
    def generation(self) -> int:
        """This incarnation of the run's process group.

        *Raises:* ``ConfigError`` before :meth:`restore`.
        """
        return self._active().number

    def track(self, **objects: Any) -> Self:
        """Name what must come back.

        Modules, optimizers, and anything with ``state_dict`` and ``load_state_dict``. Optimizers
        are tracked together with the modules whose parameters they hold. Other objects must have
        the same state on all ranks. Random generators are tracked without asking.

        *Ranks:* the same names on all ranks. *Raises:* ``ConfigError`` naming what cannot be
        tracked.
        """
        self._state.track(objects)
        return self

    def restore(self) -> Restored:
        """Put back the newest checkpoint that verifies on all ranks; without one, start afresh.

        Call it once, after :meth:`track` and before the loop.

        *Raises:* ``NoCheckpointError``, ``AllCheckpointsDamagedError``, ``StateMismatchError``,
        ``ConfigError``, ``StorageError``, ``FencedError``: the same on all ranks, and nothing on
        storage was replaced.
        """
        if self._generation is not None:
            raise ConfigError(
                "restore() was called twice; a session restores once, before its loop"
            )
        settings = self._settings
        resumed = Resumer(
            self._storage,
            self._state,
            run=self._run,
            world=self.world,
            control=self._control,
            resume=settings.resume,
            mathematics=settings.mathematics,
            accept_change=settings.accept_change,
        ).run()
        manifest = resumed.loaded.manifest if resumed.loaded else None
        if manifest is not None:
            self.step = manifest.step
            self.samples = manifest.progress["samples"]
            self.tokens = manifest.progress["tokens"]
            self.latest = manifest.id
            self._metrics = dict(manifest.metrics)
        self._generation = self._begin(resumed)
        restored = Restored(
            step=self.step,
            checkpoint=self.latest,
            generation=resumed.generation,
            world_size_was=manifest.world_size if manifest else None,
            state_digest=resumed.loaded.state_digest if resumed.loaded else None,
            skipped=resumed.skipped,
            lost=resumed.lost,
        )
        report_restored(restored, self._generation.ledger, self.world, self.uri)
        self._check_storable()
        return restored

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Wrap whatever changes tracked tensors: it waits for a snapshot still being copied.

        Saves are synchronous: ``tick`` returns with the snapshot taken and committed, so the wait
        is over before it begins.
        """
        yield

    def tick(
        self, *, samples: int = 0, tokens: int = 0, **metrics: float | torch.Tensor
    ) -> Stop | None:
        """End an optimizer step: count it, agree with all ranks what is next, save if it is time.

        A save that fails is reported and tried again when the next is due; training goes on.

        Args:
            samples: Consumed by this step over all ranks.
            tokens: The same in tokens.
            metrics: Numbers or 0-d tensors; the coordinator's last known value of each goes into
                the manifest.

        Returns:
            What to stop for, after a save, or ``None`` to go on.

        *Raises:* ``FencedError`` if a newer generation has taken over; ``CommitError`` once
        ``failed_saves_allowed`` saves in a row have failed; ``CoordinationError`` if ranks are
        missing.
        """
        active = self._active()
        self.step += 1
        self.samples += samples
        self.tokens += tokens
        self._note_metrics(metrics, active.ledger)
        failpoints.hit("step.after", step=self.step)
        save_is_due, stop_is_due = self._control.largest(
            [self._save_is_due(), self._stop_reason is not None]
        )
        if save_is_due or stop_is_due:
            self._save_tolerantly()
        if not stop_is_due:
            return None
        reasons = self._control.gather(self._stop_reason)
        return Stop(next(reason for reason in reasons if reason is not None), self.step)

    def save(self, *, tags: tuple[str, ...] = ()) -> Save:
        """Commit the current step now.

        *Durability:* the step is committed once this returns.
        *Raises:* ``CommitError`` if it is not; earlier checkpoints are untouched and training may
        go on. ``FencedError`` if a newer generation has taken over.
        """
        active = self._active()

        def describe(
            attempt: CheckpointId, objects: tuple[ObjectRecord, ...], state_digest: str
        ) -> Manifest:
            return self._manifest(attempt, objects, state_digest, tags)

        try:
            saved = active.saver.save(self._state, self.step, describe)
        except CommitError as error:
            active.ledger.record("save_failed", step=self.step, error=str(error))
            raise
        self.latest = saved.checkpoint
        self._saved_at = time.monotonic()
        report_saved(saved, active.ledger)
        return Save(saved.checkpoint, dict(saved.seconds))

    def request_stop(self, reason: str) -> None:
        """Ask all ranks to leave the loop after the next step. *Ranks:* any one is enough."""
        self._stop_reason = reason

    def record(self, event: str, **fields: Any) -> None:
        """Write a line into this rank's ledger. *Ranks:* local. Fields are JSON values."""
        if event in RESERVED_EVENTS:
            raise ConfigError(f"the event {event!r} is keepstep's own; choose another name")
        self._active().ledger.record(event, **fields)

    def close(self) -> None:
        """Leave the run as it is. *Ranks:* local."""
        self._control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._generation is not None:
                committed_step = self.latest.step if self.latest else 0
                (is_behind,) = self._control.largest([self.step != committed_step])
                if is_behind:
                    self.save()
        finally:
            self.close()

    def _open_run(self) -> str:
        """*Ranks:* coordinator."""
        catalog = Catalog(self._storage)
        if self._settings.resume in ("auto", "never"):
            return catalog.open_run()
        return str(catalog.run()["run"])  # something must be there already

    def _check_storable(self) -> None:
        """Refuse now what could not be saved later. *Raises:* ``ConfigError`` on all ranks."""
        self._control.succeed(lambda: check_values(self._state.save_dict()))

    def _begin(self, resumed: Resumed) -> "_Generation":
        key = ledger_key(resumed.generation, self.world.rank)
        saver = Saver(
            self._storage,
            self._store,
            world=self.world,
            run=self._run,
            generation=resumed.generation,
            nonce=resumed.nonce,
            timeout_seconds=self._settings.timeout_seconds,
        )
        ledger = Ledger(
            partial(self._storage.append, key),
            generation=resumed.generation,
            rank=self.world.rank,
        )
        self._saved_at = time.monotonic()
        return _Generation(resumed.generation, saver, ledger)

    def _active(self) -> "_Generation":
        if self._generation is None:
            raise ConfigError("call restore() after track() and before the loop, on every rank")
        return self._generation

    def _save_is_due(self) -> bool:
        every = self._settings.every
        if every.steps is not None:
            return self.step % every.steps == 0
        # One clock decides; the other ranks follow.
        waited = time.monotonic() - self._saved_at
        return self.world.is_coordinator and waited >= (every.seconds or math.inf)

    def _save_tolerantly(self) -> None:
        failure: CommitError | None = None
        try:
            self.save()
        except CommitError as error:
            failure = error
        # A rank may have missed an outcome that others know: they count the same all the same.
        (has_failed,) = self._control.largest([failure is not None])
        self._failed_saves = self._failed_saves + 1 if has_failed else 0
        self._saved_at = time.monotonic()
        if failure is not None:
            allowed = self._settings.failed_saves_allowed
            report_failed_save(
                failure, self.step, self.world, failed=self._failed_saves, allowed=allowed
            )
        if self._failed_saves > self._settings.failed_saves_allowed:
            raise failure or CommitAborted("too many saves in a row have failed on other ranks")

    def _manifest(
        self,
        attempt: CheckpointId,
        objects: tuple[ObjectRecord, ...],
        state_digest: str,
        tags: tuple[str, ...],
    ) -> Manifest:
        return Manifest(
            run=self._run,
            step=attempt.step,
            generation=attempt.generation,
            attempt=attempt.attempt,
            parent=self.latest,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            keepstep_version=__version__,
            torch_version=torch.__version__,
            world_size=self.world.world_size,
            parallel=self._settings.parallel,
            progress=self._progress(),
            metrics=self._metrics,
            tags=tags,
            config_digest=self._settings.config_digest,
            mathematics=self._settings.mathematics or {},
            state_digest=state_digest,
            objects=objects,
        )

    def _progress(self) -> dict[str, int]:
        progress = {"samples": self.samples, "tokens": self.tokens}
        if self._settings.samples_per_epoch:
            progress["epoch"] = self.samples // self._settings.samples_per_epoch
        return progress

    def _note_metrics(self, metrics: Mapping[str, float | torch.Tensor], ledger: Ledger) -> None:
        if not self.world.is_coordinator:
            return  # the coordinator's go into the manifest and the ledger
        numbers = {name: float(value) for name, value in metrics.items()}
        self._metrics |= {name: n for name, n in numbers.items() if math.isfinite(n)}
        # JSON has no NaN: what is not finite is written as text.
        shown = {name: n if math.isfinite(n) else str(n) for name, n in numbers.items()}
        ledger.record("step", step=self.step, samples=self.samples, metrics=shown)


@dataclass(frozen=True, slots=True)
class _Generation:
    """What a session has once it has restored."""

    number: int
    saver: Saver
    ledger: Ledger
