"""What went wrong on this node: which rank failed first, how, and who went down with it."""

import json
import os
import re
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keepstep.elastic.watchdog import STACKS_SUFFIX
from keepstep.errors import ExitCode
from keepstep.launch.monitor import Sight

_LOG_LINES = 20
_LOG_BYTES = 64 << 10
_INNERMOST_FRAMES = 12

_WAITS = (
    *("/torch/distributed/", "/torch/autograd/graph.py"),
    # `work.wait()` is a call of C, which leaves no frame of its own.
    *("/keepstep/checkpoint/store.py", "/keepstep/train/gradients.py"),
)
"""Files whose functions, innermost on the main thread, speak for a wait for other ranks."""

_WRAPS = "/torch/distributed/elastic/"
"""Around a whole trainer, by its decorator ``record``: no wait, however near."""

_LOST_PEER = (
    *("CoordinationError", "BarrierTimeout", "DistNetworkError"),
    *("Connection closed by peer", "Connection reset by peer", "remote process exited"),
    *("ncclRemoteError", "caught collective operation timeout"),
)
"""In what a rank raises that has lost another: keepstep's, gloo's and NCCL's words."""

_TOLD = (ExitCode.PREEMPTED, ExitCode.PREEMPTED_UNSAVED, -signal.SIGTERM)
"""What a rank ends with that torchrun has told to go, as it does when one of them has ended."""

_UNCAUGHT = re.compile(
    r"^terminate called after throwing an instance of '(.+)'\n *what\(\): *(.*)", re.MULTILINE
)
"""What the C++ runtime writes before it aborts."""

_LONGEST_ERROR = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How one rank of this node ended."""

    rank: int
    local_rank: int
    pid: int
    exit_code: int
    """As the kernel has it: negative for a signal."""
    failed_ns: int
    """When it had raised, or ended, on the monotonic clock."""
    error: str = ""
    """``Type: message`` of what it raised, if it could say."""
    section: str = ""
    step: int | None = None
    committed_step: int = -1
    commits: int = 0
    told_ns: int = 0
    deadline_ns: int = 0
    is_starting: bool = False
    """Whether it had begun to load, and had made no step since."""
    is_overdue: bool = False
    is_stopped: bool = False
    is_waiting: bool = False
    """Whether it waited for other ranks, by the stacks that it left."""
    is_killed: bool = False
    """Whether the launcher has killed it: because it hung, or another one had ended."""

    def was_ended_after(self, first_ns: int) -> bool:
        """Whether it was told to go, or killed, only because a rank had ended at ``first_ns``."""
        was_told = 0 < self.told_ns < first_ns
        is_told = self.exit_code in _TOLD and not was_told
        return self.failed_ns > first_ns and (self.is_killed or is_told)

    @property
    def has_lost_peer(self) -> bool:
        """Whether it failed because another rank was gone, by what it raised."""
        return any(sign in self.error for sign in _LOST_PEER)

    @property
    def may_be_others(self) -> bool:
        """Whether a rank of another node may be why: it was gone, or waited for in vain."""
        return self.has_lost_peer or self.is_waiting

    @property
    def status(self) -> int:
        """The exit code that stands for this end."""
        if self.is_overdue or self.is_stopped:
            return ExitCode.HUNG
        return ExitCode.ERROR if self.exit_code < 0 else self.exit_code

    @property
    def what(self) -> str:
        """In words."""
        if self.is_stopped:
            return f"was stopped by a signal{self._where}"
        if self.is_overdue:
            return f"hung{self._where}"
        if self.error:
            return f"raised {_brief(self.error)}{self._where}"
        if self.exit_code < 0:
            return f"was ended by {signal_name(-self.exit_code)}{self._where}"
        return f"ended with {described(self.exit_code)}{self._where}"

    @property
    def cause(self) -> str:
        """The same without what differs from time to time: to count by."""
        if self.is_stopped:
            return "was stopped by a signal"
        if self.is_overdue:
            return "hung"
        if self.error:
            return f"raised {self.error.partition(':')[0]}"
        if self.exit_code < 0:
            return f"was ended by {signal_name(-self.exit_code)}"
        return f"ended with {described(self.exit_code)}"

    @property
    def _where(self) -> str:
        if not self.section:
            return ""
        return f" in section {self.section!r}, after step {self.step}"


def first_failing(ends: Sequence[RankEnd]) -> RankEnd:
    """The rank that failed by itself; the others had lost it.

    Of ranks that hang, one that is stopped, or one that does not wait for others; else whose
    deadline passed first. Of others, one that was not ended by this launcher when another had
    ended; of those, one that does not complain of its peers; else the first. Time alone would not
    tell: what a rank does on its way out may take longer than its peers' end.
    """
    stopped = [end for end in ends if end.is_stopped]
    overdue = [end for end in ends if end.is_overdue]
    crashed = [end for end in ends if end.exit_code and not end.is_overdue]
    first_ns = min((end.failed_ns for end in crashed), default=0)
    crash = min(
        crashed,
        key=lambda end: (end.was_ended_after(first_ns), end.has_lost_peer, end.failed_ns),
        default=None,
    )
    if stopped or (
        overdue and (crash is None or min(e.deadline_ns for e in overdue) < crash.failed_ns)
    ):
        return min(stopped or overdue, key=lambda end: (end.is_waiting, end.deadline_ns))
    return crash or ends[0]


def died_of_start(ends: Sequence[RankEnd], first: RankEnd) -> bool:
    """Whether no rank came to a step after its load, and it is not for want of a peer."""
    is_transient = first.has_lost_peer or first.status == ExitCode.TRANSIENT
    return all(end.is_starting for end in ends) and not is_transient


def rank_ends(
    sights: Mapping[int, Sight],
    processes: Mapping[int, tuple[int, int, int]],
    *,
    heartbeats: Path,
    error_files: Mapping[int, str],
    logs: Mapping[int, str],
) -> list[RankEnd]:
    """Put together what is known of each rank.

    Args:
        processes: By rank: local rank, process id, exit code.
        error_files: By local rank.
        logs: By local rank, what it wrote to stderr.
    """
    wall_ns = time.time_ns() - time.monotonic_ns()
    ends = []
    for rank, (local_rank, pid, exit_code) in sorted(processes.items()):
        sight = sights.get(rank, Sight())
        raised_at, error = _read_error(Path(error_files.get(local_rank, "")))
        if not error and exit_code == -signal.SIGABRT:
            error = abort_reason(Path(logs.get(local_rank, "")))
        ended_ns = sight.ended_ns or time.monotonic_ns()
        beat = sight.beat
        ends.append(
            RankEnd(
                rank=rank,
                local_rank=local_rank,
                pid=pid,
                exit_code=exit_code,
                failed_ns=ended_ns if raised_at is None else min(raised_at - wall_ns, ended_ns),
                error=error,
                section=beat.section if beat else "",
                step=beat.step if beat else None,
                committed_step=beat.committed_step if beat else -1,
                commits=beat.commits if beat else 0,
                told_ns=beat.told_ns if beat else 0,
                deadline_ns=beat.deadline_ns if beat else 0,
                is_starting=beat.is_starting if beat else False,
                is_overdue=sight.is_overdue or exit_code == ExitCode.HUNG,
                is_stopped=sight.is_stopped,
                is_waiting=is_waiting(read_stacks(heartbeats, rank)),
                is_killed=sight.is_killed,
            )
        )
    return ends


def read_stacks(heartbeats: Path, rank: int) -> str:
    """What the rank's threads were doing when its deadline had passed; empty if it had not."""
    try:
        return (heartbeats / f"{rank}{STACKS_SUFFIX}").read_text(errors="replace")
    except OSError:
        return ""


def is_waiting(stacks: str) -> bool:
    """Whether the main thread, which is the last, was in a call that waits for other ranks."""
    main_thread = stacks.rpartition("Thread 0x")[2].splitlines()[1 : 1 + _INNERMOST_FRAMES]
    return any(place in frame and _WRAPS not in frame for frame in main_thread for place in _WAITS)


def abort_reason(log: Path) -> str:
    """``Type: message`` of a C++ exception that nobody caught, as those of NCCL's watchdog are."""
    found = _UNCAUGHT.findall(_end_of(log))
    return ": ".join(found[-1]) if found else ""


def last_lines(path: Path) -> list[str]:
    """Of a log."""
    return list(deque(_end_of(path).splitlines(), _LOG_LINES))


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The end of an incarnation on this node, and what was made of it."""

    ends: Sequence[RankEnd]
    first: RankEnd
    decision: str
    exit_code: int
    """What the launcher ends with, if it does."""
    last_committed_step: int
    restarts: Sequence[Mapping[str, Any]]
    log_lines: Sequence[str]
    log_directory: str
    node: int
    num_nodes: int

    def write(self, path: Path) -> None:
        """As JSON; whole or not at all."""
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(self._document(), indent=1) + "\n")
        draft.replace(path)

    def summary(self) -> str:
        """For a person."""
        elsewhere = (
            "; it had lost others, as all here have: look at the other nodes too"
            if self.num_nodes > 1 and self.first.may_be_others
            else ""
        )
        others = [f"rank {end.rank} {end.what}" for end in self.ends if end is not self.first]
        lines = [
            f"rank {self.first.rank} {self.first.what}{elsewhere}",
            *(f"  collateral: {other}" for other in others[:4]),
            *([f"  and {len(others) - 4} more ranks of this node"] if len(others) > 4 else []),
            f"  {_committed(self.last_committed_step)}; restarts so far: {len(self.restarts)}",
            f"  {self.decision}",
        ]
        return "\n".join(lines)

    def _document(self) -> dict[str, Any]:
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "host": socket.gethostname(),
            "node": self.node,
            "num_nodes": self.num_nodes,
            "decision": self.decision,
            "exit_code": self.exit_code,
            "first": _entry(self.first, self.first),
            "last_log_lines": list(self.log_lines),
            "ranks": [_entry(end, self.first) for end in self.ends],
            "last_committed_step": _step(self.last_committed_step),
            "restarts": list(self.restarts),
            "log_directory": self.log_directory,
        }


def described(exit_code: int) -> str:
    """An exit code with its name, if it is one of keepstep's."""
    names = {code.value: code.name for code in ExitCode}
    return f"{exit_code} ({names[exit_code]})" if exit_code in names else str(exit_code)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _brief(error: str) -> str:
    line = error.partition("\n")[0]
    return line if len(line) <= _LONGEST_ERROR else f"{line[:_LONGEST_ERROR]}..."


def _entry(end: RankEnd, first: RankEnd) -> dict[str, Any]:
    fields = asdict(end)
    for clock in ("failed_ns", "told_ns", "deadline_ns"):
        del fields[clock]  # this machine's, since it was started
    return fields | {
        "signal": signal_name(-end.exit_code) if end.exit_code < 0 else None,
        "committed_step": _step(end.committed_step),
        "what": end.what,
        "collateral": end is not first,
    }


def _committed(step: int) -> str:
    return "nothing was committed" if step < 0 else f"committed up to step {step}"


def _step(step: int) -> int | None:
    return None if step < 0 else step


def _read_error(path: Path) -> tuple[int | None, str]:
    """When, in wall-clock nanoseconds, and what a worker has left in torchelastic's form."""
    try:
        raised_at = path.stat().st_mtime_ns
        message = json.loads(path.read_text())["message"]
        text = message if isinstance(message, str) else message["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""
    return raised_at, str(text)
