"""The session: one object per rank that keeps a loop's work."""

import logging
import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from keepstep import failpoints
from keepstep.checkpoint.live import live_entries
from keepstep.checkpoint.mismatch import Difference
from keepstep.checkpoint.participant import check_storable
from keepstep.checkpoint.save_engine import SaveMode
from keepstep.checkpoint.selection import Selection, Strictness
from keepstep.checkpoint.store import C10dStore
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import CheckpointId
from keepstep.commit.skips import Skip, pass_over
from keepstep.commit.starting import Start, announce_start, end_start
from keepstep.elastic.control_group import ControlGroup
from keepstep.elastic.notices import Notice
from keepstep.elastic.orders import take_step_over, tell_exit_code
from keepstep.elastic.preemption import Preemption
from keepstep.elastic.watchdog import FIRST_STEP, INIT, LOAD, SAVE, Watchdog
from keepstep.errors import (
    ClaimInDoubt,
    CommitError,
    ConfigError,
    LossSpikeError,
)
from keepstep.observability.ledger import END, Ledger
from keepstep.observability.startup import STARTUP
from keepstep.session.drafting import draft_manifest
from keepstep.session.generation import Generation, begin_generation
from keepstep.session.going_back import best_checkpoint, go_behind
from keepstep.session.loading import load_snapshot, load_weights
from keepstep.session.metering import meter_metrics, meter_start, meter_step
from keepstep.session.premises import check_exclusive_create
from keepstep.session.reporting import (
    RESERVED_EVENTS,
    report_left,
    report_restored,
    report_started,
)
from keepstep.session.results import Restored, Stop
from keepstep.session.resume import Resumable, Resumed, Resumer
from keepstep.session.saves import Saves
from keepstep.session.saving import Describe, Save
from keepstep.session.sections import longest_before
from keepstep.session.settings import Settings
from keepstep.session.stopping import Agreed, Demand, Stopping, report_stop
from keepstep.state.app_state import AppState
from keepstep.state.folder import (
    Digests,
    FolderToLoad,
    FolderToSave,
    check_same_files,
    look_into,
)
from keepstep.storage.base import Storage
from keepstep.world import World

logger = logging.getLogger("keepstep.session")

_WHOLE = Selection()

_ENDING_SECONDS = 1.0
"""What leaving takes, once it is clear what is committed."""


class Session:
    """A run, from one rank's point of view. Made by :func:`keepstep.open`.

    *Ranks:* every public method is collective, except :meth:`track`, :meth:`record`,
    :meth:`record_state`, :meth:`request_stop` and the properties.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        world: World,
        preemption: Preemption,
        watchdog: Watchdog,
    ) -> None:
        self.world = world
        self.step = 0
        """Optimizer steps completed."""
        self.samples = 0
        """Samples consumed by the run, over all ranks."""
        self.tokens = 0
        """Tokens consumed by the run, over all ranks."""
        self._opened_at = time.time()
        self._storage = storage
        self._settings = settings
        self._watchdog = watchdog
        watchdog.begin(INIT)
        self._control = ControlGroup(world, timeout_seconds=settings.step_timeout_seconds)
        self._store = C10dStore(timeout_seconds=settings.timeout_seconds)
        self._state = AppState(rank=world.rank, seed=settings.seed)
        self._run = self._control.decide(self._open_run)
        self._generation: Generation | None = None
        self._step_hooks: list[RemovableHandle] = []
        self._metrics: dict[str, float] = {}
        self._adapted: str | None = None
        self._preemption = preemption
        self._stopping = Stopping(preemption)
        preemption.notices.listen(self._on_notice)
        self._stop: Stop | None = None
        self._noted: CheckpointId | None = None
        self._keeps_folders = False
        self._is_closed = False

    @property
    def uri(self) -> str:
        """Where the run is kept."""
        return self._storage.uri

    @property
    def latest(self) -> CheckpointId | None:
        """The newest checkpoint this session has restored or noticed to be committed."""
        return self._generation.saves.latest if self._generation else None

    @property
    def notice(self) -> Notice | None:
        """What this process has been told about its end, if anything."""
        return self._stopping.notice

    @property
    def stopped(self) -> Stop | None:
        """What :meth:`tick` returned when it said stop; by now the step may be committed."""
        stop, latest = self._stop, self.latest
        if stop is None or latest is None:
            return stop
        return replace(stop, is_committed=stop.is_committed or latest.step == stop.step)

    @property
    def _has_committed_stop(self) -> bool:
        return self.stopped is not None and self.stopped.is_committed

    @property
    def generation(self) -> int:
        """This incarnation of the run's process group.

        *Raises:* ``ConfigError`` before :meth:`restore`.
        """
        return self._restored().number

    def track(self, **objects: Any) -> Self:
        """Name what must come back.

        Modules, optimizers, and anything with ``state_dict`` and ``load_state_dict``. Optimizers
        are tracked together with the modules whose parameters they hold, and keep their state
        themselves. Other objects must have the same state on all ranks. Random generators are
        tracked without asking.

        *Ranks:* the same names on all ranks. *Raises:* ``ConfigError`` naming what cannot be
        tracked.
        """
        self._state.track(objects)
        return self

    def restore(
        self,
        *,
        strict: Strictness = True,
        rename: Mapping[str, str] | None = None,
        skip: Sequence[str] = (),
        only: Sequence[str] = (),
        cast: bool = False,
    ) -> Restored:
        """Put back the newest checkpoint that verifies on all ranks; without one, start afresh.

        Call it once, after :meth:`track` and before the loop. The options say how a checkpoint may
        differ from the tracked objects. They stand for a change of the job: checkpoints that were
        saved under the same options are restored whole, so that a restart loses nothing.

        Names are those of mismatch tables, as ``model.head.weight``; a pattern means everything
        below a name as well, and may hold wildcards. Optimizer state goes with its parameter.

        Args:
            strict: ``True``: everything fits, or it is an error that lists what does not.
                ``"shape"``: tensors of another shape stay as they were built. ``False``: so does
                whatever is on one side only.
            rename: From names in the checkpoint to names here.
            skip: Patterns of what stays as it was built.
            only: Patterns of all that is restored.
            cast: Whether tensors of another dtype are converted.

        *Raises:* ``NoCheckpointError``, ``AllCheckpointsDamagedError``, ``StateMismatchError``,
        ``ConfigError``, ``StorageError``, ``FencedError``: the same on all ranks, and nothing on
        storage was replaced.
        """
        settings = self._settings
        selection = Selection(
            strict=strict, rename=dict(rename or {}), skip=tuple(skip), only=tuple(only), cast=cast
        )
        self._adapted = selection.digest

        def start_afresh() -> tuple[Difference, ...]:
            source = settings.init_from
            return load_weights(source, self._state, selection) if source else ()

        with self._loading():
            resumed = self._resume(self._state, selection=selection, start_afresh=start_afresh)
            restored = self._go_on(resumed)
            report_left(resumed.left, self.world)
            self._check_storable()
        self._preemption.take_over()
        return restored

    def fetch(self, to: str | Path) -> Path | None:
        """Bring the newest folder that verifies to this machine; the other way to resume.

        For frameworks that write checkpoints of their own: :meth:`save_dir` keeps such a folder.
        Call it once, instead of :meth:`restore`. One rank of each node writes.

        Args:
            to: A directory on each node. The folder is made in it, named by its checkpoint; one of
                that name is replaced.

        Returns:
            The folder, or ``None`` for a fresh start.

        *Raises:* as :meth:`restore`.
        """
        directory = Path(to).absolute()
        folder = FolderToLoad(directory / ".keepstep", is_writer=self._is_first_on_node())
        with self._loading():
            restored = self._go_on(self._resume(folder))
            self._keeps_folders = True
            place = directory / restored.checkpoint.name if restored.checkpoint else None
            if place is not None:
                self._control.succeed(partial(folder.move, place))
        self._preemption.take_over()
        return place

    def save_dir(
        self,
        path: str | Path,
        *,
        step: int | None = None,
        tags: tuple[str, ...] = (),
        **metrics: float,
    ) -> Save:
        """Save a folder of files as a checkpoint of this step; :meth:`fetch` brings it back.

        Contents are kept, not permissions or times. Call :meth:`fetch` first. From then on folders
        are all that is saved: :meth:`tick` counts and agrees, and saves nothing by itself.

        *Ranks:* collective; ``path`` may be on each node's own disk, where files of one name have
        to be the same.
        *Blocks:* until the files were copied to host memory, or in sync mode until the step is
        committed; they must not change before.
        *Durability:* as :meth:`save`.

        Args:
            step: Optimizer steps completed, if :meth:`tick` does not count them.
            metrics: For the manifest.

        *Raises:* ``ConfigError`` naming a file that cannot be saved, on all ranks; else as
        :meth:`save`.
        """
        active = self._active()
        if not self._keeps_folders:
            raise ConfigError("call fetch() instead of restore() in a run that keeps folders")
        found: list[tuple[FolderToSave, Digests]] = []
        self._control.succeed(lambda: found.append(look_into(Path(path).absolute())))
        folder, digests = found[0]
        check_same_files(self._control.gather(digests))
        if step is not None:
            self.step = step
        self._note_metrics(metrics, active.ledger)
        with self._saving():
            save = active.saves.begin(folder, self.step, partial(self._describe, tags))
            return active.saves.conclude() if self._settings.mode is SaveMode.SYNC else save

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Wrap the optimizer step: it waits for a snapshot that is still being copied.

        Only in overlap mode is there ever anything to wait for. There a save is committed only
        after all ranks have entered this, and aborted by a :meth:`tick` that comes before: enter it
        ahead of a long evaluation, too.

        *Ranks:* local.
        """
        if self._generation is not None:
            with self._generation.work.stalled(self.step):
                self._generation.saves.await_staged()
        yield

    def tick(
        self, *, samples: int = 0, tokens: int = 0, **metrics: float | torch.Tensor
    ) -> Stop | None:
        """End an optimizer step: count it, agree with all ranks what is next, save if it is time.

        A save goes on in the background, unless the mode is sync. One that fails is reported and
        tried again when the next is due; training goes on.

        Args:
            samples: Consumed by this step over all ranks.
            tokens: The same in tokens.
            metrics: Numbers or 0-d tensors; the coordinator's last known value of each goes into
                the manifest. To read a tensor on a GPU waits for the step: give one now and then.
                Of a ``DTensor`` that is the whole tensor's, which all ranks find together: they
                must pass the same ones in the same order.

        Returns:
            What to stop for, after a save, or ``None`` to go on.

        *Raises:* ``FencedError`` if a newer generation has taken over; ``CommitError`` once more
        than ``failed_saves_allowed`` saves in a row have failed, unless ``when_failing`` says
        otherwise; ``CoordinationError`` if ranks are missing.
        """
        active = self._active()
        self.step += 1
        self.samples += samples
        self.tokens += tokens
        meter_step(self.step, samples=samples, tokens=tokens, world=self.world)
        self._note_metrics(metrics, active.ledger)
        failpoints.hit("step.after", step=self.step)
        saves = active.saves
        saves.check_guarded()
        (save_is_due, is_busy, has_failed), agreed = self._agree(
            self._save_is_due(), saves.is_busy, saves.has_failed
        )
        stop_is_due = agreed.demand is not Demand.GO_ON
        if not is_busy:
            saves.notice(has_failed=bool(has_failed))
        if save_is_due or stop_is_due:
            with self._saving():
                self._save_as_agreed(saves, agreed, is_busy=bool(is_busy))
        if saves.holds_training and not stop_is_due and not self._keeps_folders:
            with self._saving():
                saves.hold(self._try_to_save, stop_is_due=lambda: self._stopping.is_wanted)
        # What is broken off because of a stop is shorter than it would have been.
        self._note_commit(active, is_typical=not stop_is_due)
        self._watchdog.tick(self.step)
        active.work.step_ended(self.step)
        if not stop_is_due:
            return None
        self._stop = Stop(
            self._stopping.reasons(self._control),
            self.step,
            is_preempted=agreed.demand is Demand.LEAVE,
            is_committed=saves.latest is not None and saves.latest.step == self.step,
        )
        if self._stop.is_committed:
            self._preemption.committed()
        tell_exit_code(self._stop.exit_code)
        self._report_stop(self._stop, agreed, active)
        return self._stop

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name what is no step, such as ``"eval"``: it gets a line in the ledger, and its own time.

        Without a name it would count as part of a step, and the watchdog might take an evaluation
        for a step that hangs.

        *Ranks:* local. *Durability:* its duration, as all of the ledger.
        """
        ledger = self._active().ledger
        began = time.monotonic()
        with self._watchdog.section(name), self._preemption.patient():
            yield
        seconds = round(time.monotonic() - began, 4)
        ledger.record("phase", name=name, step=self.step, seconds=seconds)

    def stop_is_due(self) -> bool:
        """Whether the next :meth:`tick` will say stop: ask now and then in a long evaluation."""
        _, agreed = self._agree()
        return agreed.demand is not Demand.GO_ON

    def save(self, *, tags: tuple[str, ...] = ()) -> Save:
        """Save the current step now; a save in flight is waited for.

        *Blocks:* until training may go on: see ``mode`` of :func:`keepstep.open`.
        *Durability:* the step is committed once :meth:`Save.committed` returns; in sync mode, once
        this returns.
        *Raises:* ``CommitError`` if the step is not committed, here in sync mode, else by
        :meth:`Save.committed`; earlier checkpoints are untouched and training may go on.
        ``FencedError`` if a newer generation has taken over.
        """
        active = self._active()
        if self._keeps_folders:
            raise ConfigError("this session keeps folders: save one by save_dir()")
        with self._saving():
            save = active.saves.begin(self._state, self.step, partial(self._describe, tags))
            return active.saves.conclude() if self._settings.mode is SaveMode.SYNC else save

    def load_best(self, metric: str, *, only: Sequence[str] = ()) -> CheckpointId | None:
        """Load what is tracked from the checkpoint with the best value of a metric.

        Step and position stay, so that a save afterwards is one of this step.

        Args:
            metric: ``"val_loss:min"`` or ``"accuracy:max"``, by the metrics that were given to
                :meth:`tick`; of equal values the earliest counts.
            only: Patterns of what is loaded, as for :meth:`restore`; everything by default, but
                for random generators.

        Returns:
            The checkpoint, or ``None`` if none has the metric.

        *Raises:* ``ConfigError``, ``CorruptCheckpointError``, ``StorageError``.
        """
        active = self._active()
        active.saves.finish()
        with self._announced():  # or what the last commit made superfluous goes meanwhile
            best = self._control.decide(lambda: best_checkpoint(self._storage, metric))
            if best is None:
                return None
            chosen = Selection(only=tuple(only))
            self._control.succeed(lambda: load_snapshot(self._storage, best, self._state, chosen))
        if self.world.is_coordinator:
            active.retention.committed()
        return best.id

    def leave_out(self, start: int, stop: int, *, reason: str) -> NoReturn:
        """Give up what has been trained lately, because the data did harm. Call it before ``tick``.

        Samples ``start`` to ``stop``, counted as :attr:`samples`, are marked: every later
        generation leaves them out (:meth:`skip_marked`). The next start resumes from the newest
        checkpoint before them.

        *Raises:* ``LossSpikeError``, always: leave the process with it and start again.
        """
        active = self._active()
        with suppress(CommitError):
            active.saves.finish()
        skip = Skip(max(0, start), stop)
        active.ledger.record("spike", step=self.step, reason=reason, samples=[*astuple(skip)])
        head = self._control.decide(lambda: go_behind(self._storage, skip, reason=reason))
        raise LossSpikeError(
            f"step {self.step + 1}: {reason}. Samples {skip.start} to {skip.stop} are left out "
            f"from here on, and training resumes from {head or 'the newest checkpoint'}"
        )

    def skip_marked(self) -> int:
        """Pass over data that is marked to be left out: :attr:`samples` moves to behind it.

        *Ranks:* local. Returns how many samples were passed over.
        """
        before = self.samples
        self.samples = pass_over(self.samples, self._active().skips)
        if self.samples != before:
            self._active().ledger.record("skipped", step=self.step, samples=[before, self.samples])
        return self.samples - before

    def request_stop(self, reason: str) -> None:
        """Ask all ranks to leave the loop after the next step. *Ranks:* any one is enough."""
        self._stopping.request(reason)

    def record(self, event: str, **fields: Any) -> None:
        """Write a line into this rank's ledger. *Ranks:* local. Fields are JSON values."""
        if event in RESERVED_EVENTS:
            raise ConfigError(f"the event {event!r} is keepstep's own; choose another name")
        self._active().ledger.record(event, **fields)

    def record_state(self) -> None:
        """Write digests of all that is tracked, entry by entry, into this rank's ledger.

        Two runs, or a run and its checkpoint, can be compared by them: the first entry that differs
        has a name.

        *Ranks:* local.
        """
        entries = live_entries(self._state.save_dict())
        self._active().ledger.record(
            "state", step=self.step, progress=self._progress(), entries=entries
        )

    def close(self) -> None:
        """Let a save in flight come to its end, and leave the run as it is. *Ranks:* local."""
        if self._is_closed:
            return
        self._is_closed = True
        for hook in self._step_hooks:
            hook.remove()
        self._preemption.notices.ignore(self._on_notice)
        try:
            if self._generation is not None:
                with self._saving(), closing(self._generation.ledger):
                    self._generation.work.end()
                    try:
                        self._generation.saves.close()
                    finally:
                        self._generation.retention.close(within_seconds=self._left_seconds())
        finally:
            self._watchdog.rest()
            self._control.close()
            if self._settings.owns_preemption:
                self._preemption.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, SystemExit):
            self._preemption.fail(error)
        try:
            # Only a preempted job has no time for another try.
            is_hurried = self._stop is not None and self._stop.is_preempted
            has_time = not is_hurried or self._keeps_folders or self._has_committed_stop
            if kind is None and self._generation is not None and has_time:
                with self._saving():
                    self._commit_last_step(self._generation.saves)
                self._note_commit(self._generation, is_typical=self._stop is None)
                self._generation.work.end()
                self._generation.ledger.record(END, step=self.step)
        finally:
            self.close()
            if self.stopped is not None:
                tell_exit_code(self.stopped.exit_code)

    def _resume(
        self,
        state: Resumable,
        *,
        selection: Selection = _WHOLE,
        start_afresh: Callable[[], tuple[Difference, ...]] = tuple,
    ) -> Resumed:
        if self._generation is not None:
            raise ConfigError("a session resumes once, by restore() or fetch(), before its loop")
        settings = self._settings
        with self._announced() as start:
            return Resumer(
                self._storage,
                state,
                run=self._run,
                world=self.world,
                control=self._control,
                newest_generation=start.newest_generation,
                resume=settings.resume,
                mathematics=settings.mathematics,
                accept_change=settings.accept_change,
                read_once=self._reads_once(),
                selection=selection,
                start_afresh=start_afresh,
                steps_over=take_step_over(),
            ).run()

    def _go_on(self, resumed: Resumed) -> Restored:
        """Stand where the ranks agreed to stand."""
        manifest = resumed.loaded.manifest if resumed.loaded else None
        if manifest is not None:
            self.step = manifest.step
            self.samples = manifest.progress["samples"]
            self.tokens = manifest.progress["tokens"]
            self._metrics = dict(manifest.metrics)
        self._generation = self._begin(resumed)
        restored = Restored(
            step=self.step,
            checkpoint=manifest.id if manifest else None,
            generation=resumed.generation,
            world_size_was=manifest.world_size if manifest else None,
            state_digest=resumed.loaded.state_digest if resumed.loaded else None,
            skipped=resumed.skipped,
            lost=resumed.lost,
            left=tuple(difference.name for difference in resumed.left),
            initialized_from=None if manifest else self._settings.init_from,
        )
        report_restored(restored, self._generation.ledger, self.world, self.uri)
        meter_start(restored, self._generation.saves.pace, self.world)
        return restored

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Load, and stand before the first step."""
        began, began_at = time.monotonic(), time.time()
        # Slow storage is given up by those who wait for this rank. A fresh start loads nothing.
        patience = self._settings.step_timeout_seconds
        with self._watchdog.section(LOAD, at_least_seconds=patience, is_typical=False):
            yield
        active = self._restored()
        if active.saves.latest is not None:
            self._watchdog.learn({LOAD: time.monotonic() - began})
        learned = self._control.decide(lambda: longest_before(self._storage, active.number))
        self._watchdog.learn(learned)
        self._watchdog.begin(FIRST_STEP, step=self.step)
        self._noted = active.saves.latest
        if self._noted is not None:
            self._watchdog.committed(self._noted.step, is_new=False)
        opened_at = self._opened_at
        report_started(STARTUP.take(), active.ledger, opened_at=opened_at, loading_at=began_at)
        active.work.begin()

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Saves have deadlines of their own, and a way to fail that training survives."""
        settings = self._settings
        allowed = settings.deadline_seconds + settings.timeout_seconds
        with (
            self._watchdog.section(SAVE, at_least_seconds=allowed),
            self._preemption.patient(),
            self._restored().work.stalled(self.step),
        ):
            yield

    def _try_to_save(self) -> Save:
        """Once more: the watchdog's patience is for each try."""
        self._watchdog.again()
        return self._restored().saves.begin(self._state, self.step, self._describe)

    def _note_commit(self, active: Generation, *, is_typical: bool) -> None:
        """Tell the launcher of a new commit; without any, it gives up restarting some day."""
        latest = active.saves.latest
        if latest is None or latest == self._noted:
            return
        self._noted = latest
        self._watchdog.committed(latest.step, is_new=True)
        if self.world.is_coordinator and is_typical:
            active.sections.note(self._watchdog.longest)

    def _report_stop(self, stop: Stop, agreed: Agreed, active: Generation) -> None:
        if self._keeps_folders:  # what is lost shows once the loop has saved its last folder
            active.ledger.record(
                "stop", step=stop.step, reason=stop.reason, is_preempted=stop.is_preempted
            )
        else:
            report_stop(stop, agreed, active.saves, active.ledger, self.world)

    def _left_seconds(self) -> float:
        """For what may as well stay undone; infinite unless this process will be stopped."""
        return math.inf if self.notice is None else self.notice.remaining_seconds - _ENDING_SECONDS

    def _on_notice(self, notice: Notice) -> None:
        del notice
        self._watchdog.told()

    def _save_as_agreed(self, saves: Saves, agreed: Agreed, *, is_busy: bool) -> None:
        """Begin the save that is due, and finish it if all ranks leave or the mode is sync."""
        if self._keeps_folders:
            return  # the loop has what is to be saved, and hears of the stop
        if agreed.demand is Demand.LEAVE:
            self._save_in_time(saves, agreed, is_busy=is_busy)
        elif is_busy and agreed.demand is Demand.GO_ON and self._settings.when_busy == "skip":
            saves.skip(self.step)
        else:
            saves.begin(self._state, self.step, self._describe)
        if agreed.demand is Demand.STOP or self._settings.mode is SaveMode.SYNC:
            saves.finish()

    def _agree(self, *values: int) -> tuple[list[int], Agreed]:
        """The largest of each value over all ranks, and what they want next: one reduction."""
        votes = self._stopping.votes(self._active().saves.expected_seconds)
        found = self._control.largest([*values, *votes])
        agreed = Agreed.of(found[len(values) :])
        self._preemption.agreed(save_seconds=agreed.save_seconds)
        return found[: len(values)], agreed

    def _save_in_time(self, saves: Saves, agreed: Agreed, *, is_busy: bool) -> None:
        """Commit this step, or at least the one in flight, if that can be done in time."""
        try:
            if agreed.leaves_time_for(2 if is_busy else 1):
                deadline_seconds = agreed.remaining_seconds
                saves.begin(
                    self._state, self.step, self._describe, deadline_seconds=deadline_seconds
                )
                saves.finish()
            elif is_busy:
                saves.finish(within_seconds=agreed.remaining_seconds - _ENDING_SECONDS)
        except CommitError as error:
            logger.warning("the last save has failed: %s", error)

    def _commit_last_step(self, saves: Saves) -> None:
        saves.finish()
        if self._keeps_folders:
            return
        committed_step = saves.latest.step if saves.latest else 0
        (is_behind,) = self._control.largest([self.step != committed_step])
        if is_behind:
            saves.insist(self._try_to_save)

    def _open_run(self) -> str:
        """*Ranks:* coordinator."""
        check_exclusive_create(self._storage, single_writer=self._settings.single_writer)
        catalog = Catalog(self._storage)
        if self._settings.resume in ("auto", "never"):
            return catalog.open_run()
        return str(catalog.run()["run"])  # something must be there already

    @contextmanager
    def _announced(self) -> Iterator[Start]:
        """Keep checkpoints from being pruned while one is chosen and loaded.

        And beyond, if a claim got no answer: it may be carried out yet.
        """
        start = self._control.decide(lambda: announce_start(self._storage))
        is_in_doubt = False
        try:
            yield start
        except ClaimInDoubt:
            is_in_doubt = True
            raise
        finally:
            if self.world.is_coordinator and not is_in_doubt:
                end_start(self._storage, start)

    def _is_first_on_node(self) -> bool:
        hosts = self._control.gather(socket.gethostname())
        return hosts.index(hosts[self.world.rank]) == self.world.rank

    def _reads_once(self) -> bool:
        asked = self._settings.read_once
        return self._storage.capabilities.is_remote if asked is None else asked

    def _check_storable(self) -> None:
        """Refuse now what could not be saved later. *Raises:* ``ConfigError`` on all ranks."""
        self._control.succeed(self._state.check_device)
        self._control.succeed(lambda: check_storable(self._state.save_dict()))
        self._control.succeed(self._state.check_in_place)

    def _begin(self, resumed: Resumed) -> Generation:
        generation = begin_generation(
            self._storage,
            self._store,
            resumed,
            run=self._run,
            settings=self._settings,
            world=self.world,
            control=self._control,
            is_hurried=lambda: self._preemption.notice is not None,
        )
        if self._settings.mode is SaveMode.OVERLAP:
            self._step_hooks = self._state.before_steps(generation.saves.check_guarded)
        return generation

    def _active(self) -> Generation:
        if self._is_closed:
            raise ConfigError("the session is closed; open another one to go on")
        return self._restored()

    def _restored(self) -> Generation:
        if self._generation is None:
            raise ConfigError(
                "call restore(), after track(), or fetch(), on every rank before the loop"
            )
        return self._generation

    def _save_is_due(self) -> bool:
        # One clock decides; the other ranks follow.
        if self._keeps_folders:
            return False
        return self.world.is_coordinator and self._active().saves.pace.is_due(self.step)

    def _describe(self, tags: tuple[str, ...] = ()) -> Describe:
        """What the manifest of a save that begins now will say."""
        settings = self._settings
        return draft_manifest(
            run=self._run,
            parent=self.latest,
            world_size=self.world.world_size,
            parallel=settings.parallel,
            progress=self._progress(),
            metrics=dict(self._metrics),
            tags=tags,
            config_digest=settings.config_digest,
            mathematics=settings.mathematics or {},
            adapted=self._adapted,
        )

    def _progress(self) -> dict[str, int]:
        progress = {"samples": self.samples, "tokens": self.tokens}
        if self._settings.samples_per_epoch:
            progress["epoch"] = self.samples // self._settings.samples_per_epoch
        return progress

    def _note_metrics(self, metrics: Mapping[str, float | torch.Tensor], ledger: Ledger) -> None:
        whole = {name: _whole(value) for name, value in metrics.items()}
        if not self.world.is_coordinator:
            return  # the coordinator's go into the manifest and the ledger
        numbers = {name: float(value) for name, value in whole.items()}
        self._metrics |= {name: n for name, n in numbers.items() if math.isfinite(n)}
        meter_metrics(numbers)
        # JSON has no NaN: what is not finite is written as text.
        shown = {name: n if math.isfinite(n) else str(n) for name, n in numbers.items()}
        ledger.record("step", step=self.step, samples=self.samples, metrics=shown)


def _whole(metric: float | torch.Tensor) -> float | torch.Tensor:
    """Of a ``DTensor`` each rank may hold only a part, as of a norm. *Ranks:* collective then."""
    return metric.full_tensor() if isinstance(metric, DTensor) else metric
