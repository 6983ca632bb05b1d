"""torchrun's agent, with a judgement of its own about what to restart.

torchrun restarts workers on any failure, up to a number, and then ends with 1. Here each failure is
looked into: which rank failed first, what its exit code asks for, whether anything was committed
since the last one.
"""

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.launcher import api

from keepstep.elastic.health import AGENT_FILE, ENDING, MEETING, WATCHING
from keepstep.elastic.heartbeat import Heartbeat
from keepstep.elastic.rendezvous.handler import KeepstepRendezvousHandler
from keepstep.elastic.watchdog import INIT, LOAD
from keepstep.errors import ConfigError, ExitCode
from keepstep.launch.budget import PREEMPTED, Budget, Demand, demand_of
from keepstep.launch.failure import (
    Failure,
    RankEnd,
    described,
    died_of_start,
    first_failing,
    last_lines,
    rank_ends,
    read_stacks,
    signal_name,
)
from keepstep.launch.health import health_of
from keepstep.launch.monitor import Monitor, Sight
from keepstep.launch.tally import Tally
from keepstep.launch.worker import CAUSE, HEARTBEATS, RENDEZVOUS, STEP_OVER

if TYPE_CHECKING:
    from keepstep.launch.metrics import NodeState

logger = logging.getLogger("keepstep.launch")

MANY_RESTARTS = 1_000_000
"""What torchrun is told; the budget decides."""

_TOGETHER_SECONDS = 30.0
"""Workers that leave for the same reason may be so far apart."""

_OWN_DEADLINE_SECONDS = 3600
"""For workers that know by themselves when to leave at the latest."""

_MEETINGS = 3
"""So many rounds may break up when all nodes have met, but do not know their ranks yet."""

_LOOK_SECONDS = 90.0
"""Others that have lost this node are back within this time: ranks that end by force, and the pause
before they are started again, included."""

_ECHO_SECONDS = 1.0
"""A scheduler may send a signal to the whole job, and then again."""


@dataclass(slots=True)
class Job:
    """What the launcher and its agent share."""

    heartbeats: Path
    """A directory in memory, if the machine has one."""
    logs: Path
    budget: Budget
    signals: str
    """Names of those that the agent hears, and passes on to its workers."""
    exit_code: int | None = None
    """What the launcher is to end with, once that is decided."""
    cause: str = ""
    """Why, in words, once that is known."""
    restarts: list[Mapping[str, Any]] = field(default_factory=list)
    supervisor: "Supervisor | None" = None
    causes: Counter[str] = field(default_factory=Counter)
    """Restarts by cause, those for other nodes' sake included."""
    tally: Tally = field(default_factory=Tally)
    """What the workers have counted."""

    def look(self) -> "NodeState":
        """How this node is, for its metrics. From any thread."""
        from keepstep.launch.metrics import NodeState

        supervisor, budget = self.supervisor, self.budget
        return NodeState(
            self.tally.read(),
            health_of(supervisor.sights if supervisor else {}),
            dict(self.causes),
            budget.in_vain,
            budget.tries,
        )


_MEMBERS = "nodes have come or gone"
"""The cause of a restart that no worker of this node has asked for."""

_OVERRIDDEN = ("_rendezvous", "_start_workers", "_monitor_workers", "_shutdown")


def check_agent() -> None:
    """*Raises:* ``ConfigError`` if this torch's agent lacks what the supervisor builds upon."""
    missing = [name for name in _OVERRIDDEN if not hasattr(LocalElasticAgent, name)]
    if missing or not hasattr(api, "LocalElasticAgent"):
        raise ConfigError(
            f"keepstep run does not know the launcher of torch {torch.__version__} "
            f"({', '.join(missing) or 'no LocalElasticAgent'}): use torchrun, or torch 2.11 to 2.13"
        )


class Leaving(SignalException):
    """This node leaves; unlike a failure, it does not close the rendezvous for the others."""


class Supervisor(LocalElasticAgent):
    """*Ranks:* one a node."""

    def __init__(self, *args: Any, job: Job, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._job = job
        self._starts = 0
        self._cause: str | None = None
        """Why workers are started again, if that is known to be a failure."""
        self._first: RankEnd | None = None
        """Which rank it was."""
        self._is_between = True
        self._monitor: Monitor | None = None
        self._heartbeat = Heartbeat(job.heartbeats / AGENT_FILE)
        self._say(MEETING)
        job.supervisor = self

    def worker_codes(self) -> list[int | None]:
        """What the workers have ended with; ``None`` for those that have not.

        Nothing between two incarnations: what the last one ended with is known by then.
        """
        return (
            [] if self._is_between else [process.poll() for process in self._processes().values()]
        )

    @property
    def sights(self) -> Mapping[int, Sight]:
        """What is seen of the workers that run, by rank."""
        monitor = self._monitor
        return {} if monitor is None or monitor.is_closed else monitor.sights

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        began = time.time()
        for meeting in range(1, _MEETINGS + 1):
            os.environ.pop(RENDEZVOUS, None)
            try:
                super()._rendezvous(worker_group)
            except DistError as error:
                if meeting == _MEETINGS:
                    raise RendezvousConnectionError(f"a round broke up: {error}") from error
                logger.warning("the round broke up while ranks were dealt out: %s", error)
            else:
                break
        # keepstep's own has told more: since when there were enough nodes.
        os.environ.setdefault(RENDEZVOUS, f"{began:.3f} {began:.3f} {time.time():.3f}")

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        heartbeats = self._job.heartbeats / str(self._starts)
        heartbeats.mkdir()
        os.environ[HEARTBEATS] = str(heartbeats)
        if self._starts:
            os.environ[CAUSE] = self._cause or _MEMBERS
            self._job.causes[self._first.cause if self._first else _MEMBERS] += 1
        self._cause = self._first = None
        os.environ.pop(STEP_OVER, None)
        if self._job.budget.take_step_over():
            os.environ[STEP_OVER] = "1"
            logger.warning(
                "starts have ended before their first step, one after the other: the last try "
                "steps over the newest checkpoint, if there is an older one"
            )
        # Else workers could not tell a restart for other nodes' sake from the first start.
        self._remaining_restarts = worker_group.spec.max_restarts - self._starts
        self._starts += 1
        started: dict[int, Any] = super()._start_workers(worker_group)
        self._is_between = False
        hear_signals(self._job.signals)
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        processes = self._processes()
        self._job.tally.begin(heartbeats, ranks.values())
        self._monitor = Monitor(heartbeats, {ranks[local]: p for local, p in processes.items()})
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._let_leave_together()
        self._say(WATCHING)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is not WorkerState.HEALTHY:
            self._say(ENDING)
        if result.state is WorkerState.UNHEALTHY:  # torch's own verdict, if it is asked for one
            self._leave(ExitCode.HUNG, "a worker is in a sleep that nothing interrupts")
        if result.state is WorkerState.FAILED:
            self._judge(worker_group)
        return result

    def _shutdown(
        self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30, **more: Any
    ) -> None:
        self._say(ENDING)
        if self._monitor is not None and self._monitor.all_beat():
            timeout = max(timeout, _OWN_DEADLINE_SECONDS)
        if "timeout" in signature(super()._shutdown).parameters:
            more["timeout"] = timeout
        super()._shutdown(death_sig, **more)
        self._look_no_more()
        self._say(MEETING)

    def _say(self, section: str) -> None:
        """What this launcher does now, for `keepstep health`."""
        now = time.monotonic_ns()
        self._heartbeat.beat(section, step=self._starts, since_ns=now, deadline_ns=0)

    def _let_leave_together(self) -> None:
        """Wait until all have gone, if one was preempted: torchrun would send them signals."""
        give_up = time.monotonic() + _TOGETHER_SECONDS
        while time.monotonic() < give_up:
            codes = self.worker_codes()
            if None not in codes or not PREEMPTED.intersection(codes):
                return
            time.sleep(0.05)

    def _judge(self, group: WorkerGroup) -> None:
        """Decide what follows, say so, and let the agent's own loop do it."""
        ends = self._ends(group)
        self._look_no_more()
        first = first_failing(ends)
        demand = demand_of(
            first.status,
            is_told=any(_was_told(end, first) for end in ends),
            is_alone=group.group_world_size == 1,
        )
        budget = self._job.budget
        if demand is Demand.RESTART:
            budget.charge(
                died_of_start=died_of_start(ends, first),
                is_of_others=first.may_be_others and group.group_world_size != 1,
            )
        exit_code, decision = self._decision(demand, first, group)
        failure = self._failure(group, ends, first, decision, exit_code)
        self._report(failure, demand)
        if demand is Demand.LEAVE:
            self._leave(exit_code, failure.summary())
        if demand is Demand.STOP or budget.is_out_of_restarts or budget.is_spent:
            self._job.exit_code, self._job.cause = exit_code, failure.summary()
            self._remaining_restarts = 0
            return
        self._is_between = True
        self._job.restarts.append(_restart(first, is_counted=demand is Demand.RESTART))
        self._cause, self._first = f"rank {first.rank} {first.what}", first
        time.sleep(budget.pause_seconds)

    def _decision(self, demand: Demand, first: RankEnd, group: WorkerGroup) -> tuple[int, str]:
        """The exit code, if it comes to that, and a sentence.

        A node that gives up has left the others by then, and has looked what becomes of them.
        """
        budget, code = self._job.budget, first.status
        if demand is Demand.LEAVE:
            return code, f"this node leaves: {described(code)}"
        if demand is Demand.REJOIN:
            return code, "another node leaves; this one goes on with the others, uncounted"
        if demand is Demand.STOP:
            return code, f"a restart would not help: {described(code)}"
        if budget.is_out_of_restarts:
            return code, f"--max-restarts {budget.restarts} is used up: {described(code)}"
        if budget.is_spent:
            tries = f"{budget.in_vain} tries in a row have committed nothing"
            last = f"the last one because rank {first.rank} {first.what}"
            if budget.is_spent_here and _others_go_on(group):
                code = ExitCode.TRANSIENT
                return code, f"{tries}, and others go on: this node leaves with {described(code)}"
            code = ExitCode.NO_PROGRESS
            return code, f"{tries}: giving up with {described(code)}; {last}"
        if first.may_be_others and budget.of_others:
            return code, "restarting; it may be the fault of another node"
        return code, f"restarting; {budget.own} of {budget.tries} tries without a new commit"

    def _failure(
        self, group: WorkerGroup, ends: list[RankEnd], first: RankEnd, decision: str, exit_code: int
    ) -> Failure:
        logs = getattr(self._pcontext, "stderrs", {}).get(first.local_rank, "")
        return Failure(
            ends=ends,
            first=first,
            decision=decision,
            exit_code=exit_code,
            last_committed_step=self._job.budget.newest_step,
            restarts=self._job.restarts,
            log_lines=last_lines(Path(logs)) if logs else [],
            log_directory=str(self._job.logs),
            node=group.group_rank,  # type: ignore[arg-type]  # torch types it as it begins
            num_nodes=group.group_world_size,  # type: ignore[arg-type]  # the same
        )

    def _report(self, failure: Failure, demand: Demand) -> None:
        if demand in (Demand.LEAVE, Demand.REJOIN):
            logger.info("rank %d %s: %s", failure.first.rank, failure.first.what, failure.decision)
            return
        path = self._job.logs / "failure.json"
        try:
            failure.write(path)
        except OSError as error:
            logger.warning("%s cannot be written: %s", path, error)
        if self._monitor is not None and failure.first.is_overdue:
            stacks = read_stacks(self._monitor.heartbeats, failure.first.rank)
            if stacks:  # a stopped process leaves none
                logger.error("rank %d was here:\n%s", failure.first.rank, stacks)
        logger.error("%s\n  details: %s", failure.summary(), path)

    def _leave(self, exit_code: int, cause: str) -> NoReturn:
        self._job.exit_code, self._job.cause = exit_code, cause
        raise Leaving(cause, signal.SIGTERM)

    def _ends(self, group: WorkerGroup) -> list[RankEnd]:
        monitor = self._monitor
        ranks = {worker.local_rank: worker.global_rank for worker in group.workers}
        processes = {
            ranks[local]: (local, process.pid, process.returncode or 0)
            for local, process in self._processes().items()
        }
        return rank_ends(
            monitor.sights if monitor else {},
            processes,
            heartbeats=monitor.heartbeats if monitor else self._job.heartbeats,
            error_files=getattr(self._pcontext, "error_files", {}),
            logs=getattr(self._pcontext, "stderrs", {}),
        )

    def _look_no_more(self) -> None:
        """Close the monitor, and see what the incarnation has reached."""
        if self._monitor is None:
            return
        self._monitor.close()
        self._job.tally.end()
        beats = [sight.beat for sight in self._monitor.sights.values() if sight.beat is not None]
        self._job.budget.note_progress(
            max((beat.commits for beat in beats), default=0),
            max((beat.committed_step for beat in beats), default=-1),
        )

    def _processes(self) -> "dict[int, Popen[Any]]":
        """By local rank; none where workers are not started as commands."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return {local: handler.proc for local, handler in handlers.items()}


def _others_go_on(group: WorkerGroup) -> bool:
    """Leave them, and see whether they come together: then this node fails, and not the job.

    *Blocks:* until that is known, or for a minute and a half.
    """
    handler = group.spec.rdzv_handler
    return isinstance(handler, KeepstepRendezvousHandler) and handler.others_go_on(
        within_seconds=_LOOK_SECONDS
    )


def exit_code_after(number: int, codes: list[int | None], *, is_started: bool) -> int:
    """What a launcher ends with that was told to go, by what its workers ended with."""
    if not is_started:
        return 128 + number if number == signal.SIGINT else ExitCode.PREEMPTED
    if ExitCode.PREEMPTED_UNSAVED in codes:
        return ExitCode.PREEMPTED_UNSAVED
    if ExitCode.PREEMPTED in codes:
        return ExitCode.PREEMPTED
    if number == signal.SIGINT:
        return 128 + number
    by_force = [code for code in codes if code is None or code < 0]
    return ExitCode.PREEMPTED_UNSAVED if by_force else max(code or 0 for code in codes)


def hear_signals(names: str) -> None:
    """Have them end the agent's loop, once. In the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    heard_at: list[float] = []

    def hear(number: int, *_: object) -> None:
        now = time.monotonic()
        # The second one cuts the end short; a third would cut off what torch has to tidy up.
        if len(heard_at) >= 2 or (heard_at and now - heard_at[-1] < _ECHO_SECONDS):
            return
        heard_at.append(now)
        told = signal.Signals(number)
        raise SignalException(f"{signal_name(number)} came to agent {os.getpid()}", sigval=told)

    for name in names.split(","):
        number = getattr(signal, name.strip(), None)
        if number is not None:
            signal.signal(number, hear)


def _was_told(end: RankEnd, first: RankEnd) -> bool:
    """Whether this rank heard of its end before the first was over, or before training began.

    What it has been told later comes from torchrun, which ends all when one has ended.
    """
    if end.told_ns:
        return end.told_ns < first.failed_ns
    is_early = end.section in (INIT, LOAD) or (not end.section and end.step == 0)
    return end.exit_code in PREEMPTED and is_early


def _restart(first: RankEnd, *, is_counted: bool) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "rank": first.rank,
        "exit_code": first.status,
        "cause": first.what,
        "counted": is_counted,
    }
