"""The server is killed in the middle of training and comes back later: the loop never notices."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from s3_training import RunRanks, check_run, committed_steps, store_of, train

from keepstep.session.session import Session
from keepstep.testing.s3_server import S3Server

STEP_SECONDS = 0.05
DOWN_SECONDS = 5
TORCHRUN_STEPS = 400


@pytest.fixture
def mortal_server(s3_server: S3Server) -> Iterator[S3Server]:
    """Alive again afterwards, for the sake of the other tests."""
    yield s3_server
    if not s3_server.is_running:
        s3_server.start()


class Progress:
    """How far a job has come, told by one of its ranks through a file."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "progress"
        self._is_over = directory / "over"

    def after_step(self, step: int, session: Session) -> None:
        """In a rank: take some time, tell the step, and stop when that is wanted."""
        time.sleep(STEP_SECONDS)
        if session.world.is_coordinator:
            self._file.with_suffix(".new").write_text(str(step))
            self._file.with_suffix(".new").rename(self._file)
            if self._is_over.exists():
                session.request_stop("over")

    def step(self) -> int:
        return int(self._file.read_text()) if self._file.exists() else 0

    def await_step(self, step: int, timeout_seconds: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_seconds
        while self.step() < step:
            assert time.monotonic() < deadline, f"step {self.step()} of {step}"
            time.sleep(STEP_SECONDS)

    def stop(self) -> None:
        self._is_over.touch()


def test_training_goes_on_while_the_server_is_dead_and_the_next_save_commits(
    run_ranks: RunRanks, mortal_server: S3Server, s3_uri: str, tmp_path: Path
) -> None:
    progress = Progress(tmp_path)
    steps: list[int] = []

    def kill_and_restart() -> None:
        progress.await_step(5)
        mortal_server.kill()
        steps.append(progress.step())
        progress.await_step(steps[0] + round(DOWN_SECONDS / STEP_SECONDS))
        steps.append(progress.step())
        mortal_server.start()
        progress.await_step(progress.step() + 5)
        progress.stop()

    outside = threading.Thread(target=kill_and_restart)
    outside.start()
    options = {"every": 1, "when_busy": "skip"}
    outcomes = run_ranks(2, train, s3_uri, 10_000, options, 37, progress.after_step)
    outside.join()
    last = outcomes[0].step
    assert [(outcome.step, outcome.error) for outcome in outcomes] == [(last, None)] * 2
    assert max(outcome.retries for outcome in outcomes) > 0
    before, after = steps
    assert before < after < last, "it went on without a store"
    storage = store_of(s3_uri)
    committed = committed_steps(storage)
    assert committed[-1] == last
    assert not [step for step in committed if before + 20 < step < after]
    check_run(storage)
    (again, _) = run_ranks(2, train, s3_uri, last + 1, {})
    assert (again.restored_step, again.step, again.error) == (last, last + 1, None)


@pytest.mark.long
def test_a_job_under_torchrun_needs_no_restart_for_an_outage_of_twenty_seconds(
    mortal_server: S3Server, s3_uri: str, tmp_path: Path
) -> None:
    job = launch(s3_uri, tmp_path)
    assert job.stderr is not None
    lines = job.stderr
    seen = await_line(lines, "outcome=committed")
    mortal_server.kill()
    time.sleep(20)
    mortal_server.start()
    seen += await_line(lines, "outcome=committed")
    seen += lines.read()
    assert job.wait(60) == 0, seen
    assert f"done step={TORCHRUN_STEPS}" in seen
    assert "restart_count=1" not in seen
    storage = store_of(s3_uri)
    assert committed_steps(storage)[-1] == TORCHRUN_STEPS
    check_run(storage)


def launch(uri: str, directory: Path) -> subprocess.Popen[str]:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [
            *(sys.executable, *torchrun, "--max-restarts", "0"),
            *(root / "launch/train.py", root / "launch/recipes/tiny.toml"),
            *("--uri", uri, "--train.steps", str(TORCHRUN_STEPS), "--checkpoint.every", "5"),
            *("--checkpoint.when_busy", "skip"),
        ],
        cwd=directory,
        env=os.environ | {"KEEPSTEP_FAILPOINTS": "step.after=sleep:0.15", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def await_line(lines: IO[str], part: str) -> str:
    """Everything up to a line that has ``part``."""
    seen = ""
    for line in lines:
        seen += line
        if part in line:
            return seen
    pytest.fail(f"no line has {part!r}:\n{seen}")
