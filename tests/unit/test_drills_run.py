"""Watching a job from outside: its end, its processes, its codes."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from keepstep.drills import run
from keepstep.drills.inject import send
from keepstep.drills.results import Result
from keepstep.drills.run import Job
from keepstep.drills.scenario import Ending, Leg
from keepstep.errors import BarrierTimeout

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="drills read /proc")

SPAWN = """
import os, subprocess, sys, time
rank = subprocess.Popen(
    [sys.executable, "-c", {worker!r}],
    start_new_session=True,
    env={{**os.environ, "LOCAL_RANK": "0"}},
)
{agent}
"""
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Starts a stand-in for torchrun with one rank in a session of its own."""

    def start_job(*, agent: str, worker: str = SLEEP) -> Job:
        code = SPAWN.format(worker=worker, agent=agent)
        monkeypatch.setattr(run, "_torchrun", lambda leg: [sys.executable, "-c", code])
        failpoints = {"KEEPSTEP_FAILPOINTS": ""}
        return Job(Leg(1), {}, environ=os.environ, failpoints=failpoints, log=tmp_path / "log")

    return start_job


@pytest.mark.parametrize("code", [0, 85, 86])
def test_what_a_launcher_ends_with_is_held_against_what_was_expected(code: int) -> None:
    def ended(ending: Ending, worker_codes: tuple[int, ...] = ()) -> bool:
        log = Path("log")
        return Result(
            ending=ending, code=code, worker_codes=worker_codes, seconds=1.0, orphans=0, log=log
        ).is_as_expected

    assert ended(Ending.COMPLETE) == (code == 0)
    assert ended(Ending.PREEMPTED) == (code == 85)
    assert ended(Ending.KILLED, worker_codes=(-9,)) == (code != 0)


def wait_for_rank(job: Job) -> int:
    deadline = time.monotonic() + 20
    while not (ranks := job.ranks()):
        assert time.monotonic() < deadline, "no rank was started"
        time.sleep(0.01)
    return ranks[0]


def test_leaving_kills_ranks_in_sessions_of_their_own(start: Callable[..., Job]) -> None:
    with start(agent="rank.wait()") as job:
        rank = wait_for_rank(job)
        assert len(job.pids()) == 2
    assert job.pids() == []
    assert not _is_alive(rank)


def test_leaving_kills_stopped_ranks(start: Callable[..., Job]) -> None:
    with start(agent="rank.wait()") as job:
        send(signal.SIGSTOP, [wait_for_rank(job)])
    assert job.pids() == []


def test_a_rank_that_outlives_torchrun_is_counted(
    start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_GRACE_SECONDS", 0.2)
    with start(agent="") as job:
        result = job.wait(Ending.COMPLETE)
    assert result.code == 0
    assert result.orphans == 1
    assert not result.is_as_expected


def test_codes_of_workers_are_read_from_the_report(start: Callable[..., Job]) -> None:
    agent = "rank.wait(); print('exitcode  : -9 (pid: 7)\\\\n  exitcode : 87'); sys.exit(1)"
    with start(agent=agent, worker="pass") as job:
        result = job.wait(Ending.FENCED)
    assert result.worker_codes == (-9, 87)
    assert result.is_as_expected


def test_a_job_that_does_not_end_is_killed(
    start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TIMEOUT_SECONDS", 0.2)
    with start(agent="rank.wait()") as job:
        with pytest.raises(BarrierTimeout, match="did not end within"):
            job.wait(Ending.COMPLETE)
        assert job.pids() == []


def test_freezing_waits_for_a_rank_to_stop_itself_and_thawing_lets_it_end(
    start: Callable[..., Job],
) -> None:
    worker = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    with start(agent="sys.exit(rank.wait())", worker=worker) as job:
        job.freeze()
        job.thaw()
        assert job.wait(Ending.COMPLETE).is_as_expected


def test_freezing_a_job_that_ends_first_is_an_error(start: Callable[..., Job]) -> None:
    job = start(agent="rank.wait()", worker="pass")
    with job, pytest.raises(BarrierTimeout, match="no rank stopped"):
        job.freeze()


def test_settings_of_the_caller_do_not_reach_the_job(
    start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KEEPSTEP_TRAIN__STEPS", "7")
    agent = "rank.wait(); print(sorted(name for name in os.environ if 'KEEPSTEP' in name))"
    with start(agent=agent, worker="pass") as job:
        job.wait(Ending.COMPLETE)
    assert (tmp_path / "log").read_text().strip() == "['KEEPSTEP_FAILPOINTS']"


def _is_alive(pid: int) -> bool:
    """Whether it runs: a dead process that its parent has not asked about has no environment."""
    try:
        return bool(Path(f"/proc/{pid}/environ").read_bytes())
    except OSError:
        return False
