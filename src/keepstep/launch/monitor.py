"""The agent's eye on its workers: who hangs, who has ended, in which order; and an end by force.

A worker that hangs ends itself, as a rule, by its own watchdog. One that is stopped cannot, and
torchrun would wait for it: the monitor kills it, and only with SIGKILL, which works on stopped
processes too.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from keepstep.elastic.deadline import LATEST_SECONDS
from keepstep.elastic.heartbeat import Beat, read_beat

_LOOK_SECONDS = 0.1

_PATIENCE_SECONDS = LATEST_SECONDS + 0.5
"""After a deadline the worker has so long to write its stacks and end by itself."""

_COLLATERAL_SECONDS = 10.0
"""What workers have that another one's end has left without a peer. They cannot go on."""


@dataclass(slots=True)
class Sight:
    """What the monitor has seen of one worker."""

    beat: Beat | None = None
    is_overdue: bool = False
    """Whether it was alive after its deadline."""
    is_stopped: bool = False
    """Whether a signal had stopped it, when a deadline had passed or another worker had ended."""
    is_killed: bool = False
    """Whether the monitor has killed it: because it hung, or another one had ended."""
    ended_ns: int | None = None
    """On the monotonic clock."""


@dataclass(slots=True)
class _Watched:
    process: "Popen[Any]"
    pidfd: int | None
    sight: Sight = field(default_factory=Sight)


class Monitor:
    """Watches the workers of one incarnation, from a thread of its own.

    Args:
        heartbeats: The directory of their heartbeats.
        processes: The workers by rank, each the leader of a process group of its own.
    """

    def __init__(self, heartbeats: Path, processes: Mapping[int, "Popen[Any]"]) -> None:
        self.heartbeats = heartbeats
        self._workers = {
            rank: _Watched(process, _pidfd(process.pid)) for rank, process in processes.items()
        }
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keepstep-monitor", daemon=True)
        self._thread.start()

    @property
    def sights(self) -> dict[int, Sight]:
        """What has been seen so far, by rank."""
        return {rank: worker.sight for rank, worker in self._workers.items()}

    @property
    def first_ended_ns(self) -> int | None:
        """When the first of them ended."""
        return min(
            (w.sight.ended_ns for w in self._workers.values() if w.sight.ended_ns is not None),
            default=None,
        )

    @property
    def is_closed(self) -> bool:
        """Whether it looks no more."""
        return self._is_closed.is_set()

    def all_beat(self) -> bool:
        """Whether all of them are keepstep's, and have a deadline of their own for leaving."""
        return all(worker.sight.beat is not None for worker in self._workers.values())

    def close(self) -> None:
        """Look no more."""
        self._is_closed.set()
        self._thread.join()
        for worker in self._workers.values():
            if worker.pidfd is not None:
                os.close(worker.pidfd)
                worker.pidfd = None

    def _watch(self) -> None:
        poll = select.poll()
        for worker in self._workers.values():
            if worker.pidfd is not None:
                poll.register(worker.pidfd, select.POLLIN)
        while not self._is_closed.is_set():
            ready = {descriptor for descriptor, _ in poll.poll(_LOOK_SECONDS * 1000)}
            for descriptor in ready:
                poll.unregister(descriptor)
            now = time.monotonic_ns()
            for rank, worker in self._workers.items():
                self._look(rank, worker, now, has_ended=worker.pidfd in ready)
            self._end_those_who_cannot_go_on(now)
            if os.getpid() == 1:
                self._reap_orphans()

    def _look(self, rank: int, worker: _Watched, now: int, *, has_ended: bool) -> None:
        sight = worker.sight
        if sight.ended_ns is not None:
            return
        sight.beat = read_beat(self.heartbeats / str(rank)) or sight.beat
        deadline = sight.beat.deadline_ns if sight.beat else 0
        sight.is_overdue = bool(deadline) and now > deadline
        if sight.is_overdue or self.first_ended_ns is not None:
            sight.is_stopped = sight.is_stopped or _is_stopped(worker.process.pid)
        if has_ended or worker.process.returncode is not None:
            sight.ended_ns = now

    def _end_those_who_cannot_go_on(self, now: int) -> None:
        """Kill all workers if one hangs, and those who have lost one of theirs for too long."""
        hangs = any(
            worker.sight.beat is not None
            and worker.sight.is_overdue
            and worker.sight.ended_ns is None
            and now > worker.sight.beat.deadline_ns + _PATIENCE_SECONDS * 1e9
            for worker in self._workers.values()
        )
        first = self.first_ended_ns
        is_late = first is not None and now > first + _COLLATERAL_SECONDS * 1e9
        if hangs or (is_late and self._has_failed()):
            for worker in self._workers.values():
                if worker.sight.ended_ns is None and worker.process.returncode is None:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(worker.process.pid, signal.SIGKILL)
                        worker.sight.is_killed = True

    def _has_failed(self) -> bool:
        """Whether one has ended as none should; the agent has asked for their status by now."""
        return any(worker.process.returncode for worker in self._workers.values())

    def _reap_orphans(self) -> None:
        """As PID 1, this process is the parent of what workers leave behind."""
        ours = {worker.process.pid for worker in self._workers.values()}
        with suppress(ChildProcessError):
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None and ended.si_pid not in ours:
                os.waitpid(ended.si_pid, os.WNOHANG)


def _pidfd(pid: int) -> int | None:
    """Tells of a process's end at once; without it, the agent's own looks do."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"
