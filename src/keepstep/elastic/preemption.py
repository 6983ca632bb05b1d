"""Leaving in time: notices from wherever they come, and a last resort when the time is over."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from keepstep.elastic.notices import Notice, Notices
from keepstep.elastic.probes import Cloud, FileProbe, Probe, ProbeThread, cloud_probe
from keepstep.elastic.signals import SignalListener, can_listen, leave
from keepstep.errors import ExitCode

logger = logging.getLogger("keepstep.elastic")

_MARGIN_SECONDS = 0.5
"""What ending takes; force is used at the deadline."""

_SHORTEST_ANSWER_SECONDS = 5.0
_SLOWER = 3
"""A step may take so many times as long as the slowest of the last few."""

_REMEMBERED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeSources:
    """Where to listen for notices."""

    signals: bool = True
    """SIGTERM and SIGUSR1, unless the process handles them itself."""
    grace_seconds: float = 30.0
    """Between such a signal and force: what ``terminationGracePeriodSeconds`` and the like say."""
    file: Path | None = None
    """A file whose appearance is a notice; it may hold the seconds left."""
    cloud: Cloud | None = None
    metadata_url: str | None = None
    """Of the cloud's metadata service, where it is not at its usual address."""
    every_seconds: float = 2.0
    """Between two looks at the file or the metadata service."""

    def probes(self) -> list[Probe]:
        """Of the file and the cloud."""
        probes: list[Probe] = []
        if self.file is not None:
            probes.append(FileProbe(self.file, self.grace_seconds))
        if self.cloud is not None:
            probes.append(cloud_probe(self.cloud, self.metadata_url))
        return probes


class Preemption:
    """Listens while it is open. Make it early, in the main thread; a session then takes it over.

    Before :meth:`take_over` there is nothing to save, and a notice ends the process. After it, the
    session is expected to leave in time. If ranks do not even agree to, the process ends early: a
    launcher sends SIGTERM as well when a peer has died, and then there is nothing to wait for. If
    they do but are not through, it ends just before the deadline, so that its exit code says why.

    *Ranks:* local.
    """

    def __init__(self, sources: NoticeSources) -> None:
        self.notices = Notices()
        self._is_taken_over = False
        self._is_failing = False
        self._is_patient = False
        self._code = ExitCode.PREEMPTED_UNSAVED
        """What a last resort ends the process with."""
        self._agreed_at: float | None = None
        self._between: deque[float] = deque(maxlen=_REMEMBERED)
        self._save_seconds = 0.0
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._parts: list[SignalListener | ProbeThread] = []
        if sources.signals and can_listen():
            self._parts.append(
                SignalListener(
                    self.notices,
                    grace_seconds=sources.grace_seconds,
                    at_once=self._leave_at_once,
                )
            )
        if probes := sources.probes():
            self._parts.append(
                ProbeThread(probes, self.notices, every_seconds=sources.every_seconds)
            )
        self.notices.listen(self._on_notice)

    @property
    def notice(self) -> Notice | None:
        """What this process has been told, if anything."""
        return self.notices.first

    def take_over(self) -> None:
        """From here on a notice is for the session to act upon."""
        with self._lock:
            self._is_taken_over = True

    def agreed(self, *, save_seconds: float) -> None:
        """The ranks have just agreed on what is next; to be called whenever they do.

        Args:
            save_seconds: What a save is expected to take.
        """
        now = time.monotonic()
        with self._lock:
            if self._agreed_at is not None:
                self._between.append(now - self._agreed_at)
            self._agreed_at = now
            self._save_seconds = save_seconds
        if (notice := self.notices.first) is not None:
            self._end_in(
                notice.remaining_seconds - _MARGIN_SECONDS, notice, "this rank is not through"
            )

    @contextmanager
    def patient(self) -> Iterator[None]:
        """What goes on in the block, as a save, takes longer than a step.

        A notice that comes meanwhile leaves it all the time there is.
        """
        before, self._is_patient = self._is_patient, True
        try:
            yield
        finally:
            self._is_patient = before

    def committed(self) -> None:
        """The step at which all leave is: whatever ends this process now, nothing is lost."""
        self._code = ExitCode.PREEMPTED

    def fail(self, error: BaseException) -> None:
        """The session ends by an error: from here on a notice ends the process at once."""
        with self._lock:
            self._is_failing = True
        if (notice := self.notices.first) is not None:
            logger.error("training has failed", exc_info=error)  # or nobody would know
            leave(self._code, f"{notice.source}, and training has failed")

    def close(self) -> None:
        """Listen no more, and let the deadline pass."""
        self.notices.ignore(self._on_notice)
        for part in self._parts:
            part.close()
        self._parts = []
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _on_notice(self, notice: Notice) -> None:
        with self._lock:
            if not self._is_taken_over:
                leave(ExitCode.PREEMPTED, f"{notice.source} before training began: nothing is lost")
            if self._is_failing:
                leave(self._code, f"{notice.source}, and training has failed")
            slowest = math.inf if self._is_patient else max(self._between, default=math.inf)
            patience = max(_SHORTEST_ANSWER_SECONDS, _SLOWER * slowest)
            last = notice.remaining_seconds - _MARGIN_SECONDS
            if last > self._save_seconds:  # else there is no time for a save, only for good-byes
                last -= self._save_seconds
        self._end_in(min(patience, last), notice, "the ranks have not agreed on what is next")

    def _end_in(self, seconds: float, notice: Notice, why: str) -> None:
        """Set the last resort, in the place of an earlier one."""
        message = f"{notice.source} came, and {why} after {max(seconds, 0.0):.1f} s"
        timer = threading.Timer(max(seconds, 0.0), lambda: leave(self._code, message))
        timer.daemon = True
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = timer
            timer.start()

    def _leave_at_once(self, name: str) -> None:
        leave(self._code, f"{name} came again")
