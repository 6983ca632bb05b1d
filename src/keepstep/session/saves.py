"""The saves of a session: one in flight at most, every outcome noticed, failures in a budget."""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, NoReturn

from keepstep.commit.layout import CheckpointId
from keepstep.elastic.control_group import ControlGroup
from keepstep.errors import CommitAborted, CommitError, FencedError, InternalError
from keepstep.observability.ledger import Ledger
from keepstep.session.metering import meter_failed_save, meter_saved, meter_skipped_save
from keepstep.session.pacing import Pace
from keepstep.session.reporting import (
    report_failed_save,
    report_pause,
    report_saved,
    report_skipped_save,
)
from keepstep.session.saving import Describe, Savable, Save, Saver
from keepstep.world import World

logger = logging.getLogger("keepstep.session")

WhenFailing = Literal["stop", "continue", "pause"]

_REMEMBERED = 5

_PAUSE_SECONDS = 5.0
"""Between two tries of a job that is held up."""


class Saves:
    """*Ranks:* one object each; methods are collective unless they say otherwise."""

    def __init__(
        self,
        saver: Saver,
        ledger: Ledger,
        control: ControlGroup,
        *,
        world: World,
        latest: CheckpointId | None,
        failed_saves_allowed: int,
        when_failing: WhenFailing,
        longest_pause_seconds: float,
        pace: Pace,
        after_commit: Callable[[], None],
    ) -> None:
        self.latest = latest
        """The newest checkpoint that was restored or committed, as far as is noticed."""
        self._saver = saver
        self._ledger = ledger
        self._control = control
        self._world = world
        self._allowed = failed_saves_allowed
        self._when_failing = when_failing
        self._longest_pause_seconds = longest_pause_seconds
        self.pace = pace
        """Decides when the next save is due."""
        self._after_commit = after_commit
        self._failed = 0
        self._failure: CommitError | None = None
        self._in_flight: Save | None = None
        self._begun_ns = 0
        """When it began."""
        self._has_skipped = False
        self._lately: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def expected_seconds(self) -> float:
        """What the slowest of the last few saves took; 0 if there was none. *Ranks:* local."""
        return max(self._lately, default=0.0)

    @property
    def holds_training(self) -> bool:
        """Whether training has to pause until a save is committed. The same on all ranks."""
        return self._failed > self._allowed and self._when_failing == "pause"

    @property
    def is_busy(self) -> bool:
        """Whether a save is in flight whose outcome this rank does not know. *Ranks:* local."""
        return self._in_flight is not None and not self._in_flight.is_over

    @property
    def has_failed(self) -> bool:
        """Whether a save has failed that was not noticed yet. *Ranks:* local."""
        return self._in_flight is not None and self._in_flight.has_failed

    def await_staged(self) -> None:
        """Return once the tensors may change. *Ranks:* local."""
        if self._in_flight is not None:
            self._in_flight.staged()

    def check_guarded(self) -> None:
        """Abort a save that nobody has vouched for although a step was taken. *Ranks:* local."""
        if self._in_flight is not None:
            self._in_flight.spoil()

    def begin(
        self,
        state: Savable,
        step: int,
        describe: Callable[[], Describe],
        *,
        deadline_seconds: float | None = None,
    ) -> Save:
        """Begin a save once the one in flight is over. *Raises:* as :meth:`notice`.

        Args:
            deadline_seconds: If it is to be given up earlier than usual.
        """
        self.finish()
        self._ledger.record("save_begun", step=step)
        self.pace.began()
        self._has_skipped = False
        self._begun_ns = time.monotonic_ns()
        self._in_flight = self._saver.begin(
            state, step, describe(), deadline_seconds=deadline_seconds
        )
        return self._in_flight

    def skip(self, step: int) -> None:
        """Do without a save that is due while another is in flight. *Ranks:* local."""
        if not self._has_skipped:
            report_skipped_save(step, self._ledger, self._world)
            meter_skipped_save(self._world)
        self._has_skipped = True

    def finish(self, *, within_seconds: float | None = None) -> None:
        """Wait for the save in flight, if there is one. *Raises:* as :meth:`notice`.

        Args:
            within_seconds: Wait no longer, and leave it in flight.
        """
        if self._in_flight is None:
            return
        self._in_flight.wait(within_seconds)
        has_failed, is_busy = self._control.largest([self.has_failed, self.is_busy])
        if not is_busy:
            self.notice(has_failed=bool(has_failed))

    def notice(self, *, has_failed: bool) -> None:
        """Take note of the outcome that all ranks know, if there is one.

        Args:
            has_failed: On any rank: one may have missed an outcome that others know, and all must
                count alike.

        *Raises:* ``FencedError`` if a newer generation has taken over; ``CommitError`` if more
        saves in a row have failed than are allowed, and training is to stop then.
        """
        if self._in_flight is None:
            return
        step = self._in_flight.checkpoint.step
        failure: CommitError | None = None
        try:
            self.conclude()
        except CommitError as error:
            failure = error
        self._failed = self._failed + 1 if has_failed else 0
        if failure is not None:
            report_failed_save(
                failure, step, self._world, failed=self._failed, allowed=self._allowed
            )
            meter_failed_save(failure, self._world, failed=self._failed)
        if has_failed:
            self._failure = failure or CommitAborted("the save has failed on other ranks")
        if self._failed > self._allowed and self._when_failing == "stop":
            self._give_up()

    def insist(self, begin: Callable[[], Save]) -> None:
        """Save until a step is committed; as often, and as long, as failures are put up with.

        *Raises:* what the last try raised; ``FencedError``.
        """
        while True:
            begin()
            self.finish()
            if self.holds_training:
                self.hold(begin, stop_is_due=lambda: False)
            if not self._failed:
                return
            if self._failed > self._allowed:
                self._give_up()
            time.sleep(_PAUSE_SECONDS)

    def hold(self, begin: Callable[[], Save], *, stop_is_due: Callable[[], bool]) -> None:
        """Keep training waiting, trying to save again and again, until a step is committed.

        *Blocks:* at most ``longest_pause_seconds``, and as long as the last try takes.
        *Raises:* what the last try raised, once that time is over; ``FencedError``.

        Args:
            begin: Begins a save of the step at which training waits.
            stop_is_due: Whether this rank wants to leave all the same.
        """
        began = time.monotonic()
        while True:
            self.finish()
            if not self.holds_training:
                return
            has_lasted = time.monotonic() - began > self._longest_pause_seconds
            is_over, leaves = self._control.largest([has_lasted, stop_is_due()])
            if leaves:
                return
            if is_over:
                self._give_up()
            report_pause(time.monotonic() - began, self._longest_pause_seconds, self._world)
            time.sleep(_PAUSE_SECONDS)
            begin()

    def _give_up(self) -> NoReturn:
        raise self._failure or InternalError("no save has failed")

    def conclude(self) -> Save:
        """Wait for the save in flight, and raise what it raised. *Ranks:* local."""
        save, self._in_flight = self._in_flight, None
        if save is None:
            raise InternalError("no save is in flight")
        try:
            self.latest = save.committed()
        except CommitError as error:
            self.pace.failed()
            self._ledger.record("save_failed", step=save.checkpoint.step, error=str(error))
            raise
        self.pace.ended(save.cost)
        self._lately.append(save.cost.total_seconds)
        report_saved(save, self._ledger, allocations=self._saver.allocations)
        meter_saved(save, self.pace, begun_ns=self._begun_ns)
        self._after_commit()
        return save

    def close(self) -> None:
        """Let the save in flight come to its end, and free what saving needs. *Ranks:* local.

        *Raises:* ``FencedError``: whatever else has happened, this is why nobody answers.
        """
        fenced: FencedError | None = None
        try:
            if self._in_flight is not None:
                self.conclude()
        except FencedError as error:
            fenced = error
        except Exception as error:  # noqa: BLE001  # whatever it was, this is the end
            logger.warning("the last save has failed: %s", error)
        # Not if waiting was interrupted: the save's thread still needs what this would free.
        self._saver.close()
        if fenced is not None:
            raise fenced
