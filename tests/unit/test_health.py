"""``keepstep health``: by heartbeats alone, without a launcher."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from keepstep.elastic import health
from keepstep.elastic.health import AGENT_FILE, ENDING, MEETING, WATCHING, Health, look
from keepstep.elastic.heartbeat import Heartbeat
from keepstep.errors import ExitCode

Keepstep = Callable[..., tuple[int, str, str]]
SECOND = 10**9


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "keepstep-x" / "0").mkdir(parents=True)
    return tmp_path


def agent(place: Path, section: str = WATCHING, *, age_seconds: float = 0, starts: int = 1) -> None:
    since = time.monotonic_ns() - int(age_seconds * SECOND)
    beat = Heartbeat(place / "keepstep-x" / AGENT_FILE)
    beat.beat(section, step=starts, since_ns=since, deadline_ns=0)


def worker(place: Path, *, late_seconds: float, incarnation: int = 0) -> None:
    now = time.monotonic_ns()
    beat = Heartbeat(place / "keepstep-x" / str(incarnation) / "3")
    beat.beat("save", step=7, since_ns=now, deadline_ns=now - int(late_seconds * SECOND))
    beat.commit(1, 5)


def only(place: Path, max_age_seconds: float = 60) -> Health:
    (found,) = look([place], max_age_seconds=max_age_seconds)
    return found


def test_one_that_looks_at_its_workers_is_well(place: Path) -> None:
    agent(place)
    worker(place, late_seconds=-10)
    assert only(place) == Health(os.getpid(), WATCHING, 5, ())


def test_one_that_has_not_looked_for_long_is_ill(place: Path) -> None:
    agent(place, age_seconds=70)
    assert "has not looked at its workers for 70 s" in only(place).problems[0]
    assert only(place, max_age_seconds=100).problems == ()


@pytest.mark.parametrize("section", [MEETING, ENDING])
def test_meeting_and_ending_have_time_limits_of_their_own(place: Path, section: str) -> None:
    agent(place, section, age_seconds=500)
    worker(place, late_seconds=-10)
    assert only(place).problems == ()


def test_workers_of_before_a_meeting_do_not_count(place: Path) -> None:
    agent(place, MEETING)
    worker(place, late_seconds=500)
    assert only(place).problems == ()


def test_a_worker_that_hangs_while_it_is_being_ended_is_named(place: Path) -> None:
    agent(place, ENDING)
    worker(place, late_seconds=61)
    assert "rank 3 should have been through with section 'save' 61 s ago" in only(place).problems[0]


def test_a_worker_that_has_ended_is_not_late(place: Path) -> None:
    agent(place, ENDING)
    pid = os.fork()
    if pid == 0:
        worker(place, late_seconds=61)
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    try:
        assert only(place).problems == ()
    finally:
        os.waitpid(pid, 0)


def test_a_worker_that_should_have_been_ended_is_named(place: Path) -> None:
    agent(place)
    worker(place, late_seconds=61)
    assert "rank 3 should have been through with section 'save' 61 s ago" in only(place).problems[0]


def test_workers_of_an_earlier_incarnation_do_not_count(place: Path) -> None:
    agent(place, starts=2)
    worker(place, late_seconds=500)
    assert only(place).problems == ()


def test_what_a_dead_launcher_has_left_does_not_count(place: Path) -> None:
    code = (
        "import sys, pathlib; from keepstep.elastic.heartbeat import Heartbeat\n"
        "Heartbeat(pathlib.Path(sys.argv[1])).beat('watching', step=1, since_ns=1, deadline_ns=0)"
    )
    path = place / "keepstep-x" / AGENT_FILE
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert path.exists()
    assert look([place], max_age_seconds=1) == []


def test_the_command_says_0_88_or_75(
    place: Path, keepstep: Keepstep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepstep.cli.health.places", lambda: [place])
    assert keepstep("health")[0] == ExitCode.TRANSIENT
    agent(place)
    worker(place, late_seconds=-10)
    code, out, _ = keepstep("health")
    assert (code, out) == (0, f"launcher {os.getpid()}: watching; last commit: step 5\n")
    agent(place, age_seconds=70)
    assert keepstep("health", "--max-age", "60")[0] == ExitCode.HUNG
    assert keepstep("health", "--max-age=100")[0] == ExitCode.OK
    assert keepstep("health", "--max-age", "0")[0] == ExitCode.USAGE
    assert '"problems": []' in keepstep("health", "--max-age=100", "--json")[1]


def test_shared_memory_is_looked_at() -> None:
    assert Path("/dev/shm") in health.places()
