"""Whether what ``keepstep run`` does on this machine goes on, by heartbeats in shared memory."""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keepstep.elastic.heartbeat import Beat, read_beat

PREFIX = "keepstep-"
"""With which the name of a launcher's directory begins."""
AGENT_FILE = "agent"
"""The launcher's own heartbeat in it, beside a directory for each incarnation of its workers."""

MEETING = "meeting"
WATCHING = "watching"
ENDING = "ending"
"""What a launcher does. Only while it watches does it beat: the rest has time limits of its own.
While it ends workers, those that live still have their deadlines."""


@dataclass(frozen=True, slots=True)
class Health:
    """Of one launcher and its workers."""

    pid: int
    section: str
    committed_step: int
    """The newest its workers know of; -1 if there is none."""
    problems: tuple[str, ...]
    """Empty if all is well."""


def places() -> list[Path]:
    """Where launchers of this machine, or container, keep their heartbeats."""
    return [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108  # only read


def look(directories: list[Path], *, max_age_seconds: float) -> list[Health]:
    """The health of every launcher that lives. Directories that dead ones have left do not count.

    A launcher is ill if it has not looked at its workers for so long, or if one of them is over
    its deadline for so long, and nobody has ended it: also while the launcher ends its workers.
    """
    now = time.monotonic_ns()
    max_age_ns = int(max_age_seconds * 1e9)
    return [_health(root, agent, now, max_age_ns) for root, agent in _launchers(directories)]


def _launchers(directories: list[Path]) -> Iterator[tuple[Path, Beat]]:
    for place in dict.fromkeys(directories):
        for path in sorted(place.glob(f"{PREFIX}*/{AGENT_FILE}")):
            beat = read_beat(path)
            if beat is not None and _lives(beat.pid):
                yield path.parent, beat


def _health(root: Path, agent: Beat, now: int, max_age_ns: int) -> Health:
    workers = dict(_workers(root, agent.step))
    problems = []
    if agent.section == WATCHING and now - agent.since_ns > max_age_ns:
        age = (now - agent.since_ns) / 1e9
        problems.append(f"launcher {agent.pid} has not looked at its workers for {age:.0f} s")
    for rank, beat in workers.items():
        if _is_left_over(agent, beat) and 0 < beat.deadline_ns < now - max_age_ns:
            late = (now - beat.deadline_ns) / 1e9
            problems.append(
                f"rank {rank} should have been through with section {beat.section!r} {late:.0f} s "
                "ago, and has not been ended"
            )
    newest = max((beat.committed_step for beat in workers.values()), default=-1)
    return Health(agent.pid, agent.section, newest, tuple(problems))


def _is_left_over(agent: Beat, worker: Beat) -> bool:
    """Whether its being late says that nobody ends it. One that has ended says nothing any more."""
    return agent.section == WATCHING or (agent.section == ENDING and _runs(worker.pid))


def _workers(root: Path, starts: int) -> Iterator[tuple[int, Beat]]:
    """Of the latest incarnation, by rank."""
    for path in sorted((root / str(starts - 1)).glob("*")):
        if path.name.isdecimal() and (beat := read_beat(path)):
            yield int(path.name), beat


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _runs(pid: int) -> bool:
    """Whether it lives and has not ended: one that nobody has waited for yet has no work left."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # gone, or no such files on this system
        return False
    return state not in ("Z", "X")
