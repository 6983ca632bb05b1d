"""Real jobs that are told to go: what is committed, what is lost, what the processes end with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keepstep.commit.catalog import Catalog
from keepstep.errors import ExitCode
from keepstep.storage.local import LocalStorage
from keepstep.testing.metadata_service import MetadataService

pytestmark = pytest.mark.drill

_LONGEST_SECONDS = 90
_SMALL = [
    *("--uri", "run"),
    *("--train.steps", "100000"),
    *("--train.log_every", "5"),
    *("--train.evaluate_every", "0"),
    *("--model.layers", "1"),
    *("--model.width", "16"),
    *("--batch.global_size", "4"),
    *("--data.validation_samples", "64"),
    *("--checkpoint.every", "100000"),
]


class Job:
    """A torchrun job with its log in memory."""

    def __init__(self, directory: Path, *arguments: str, ranks: int, failpoints: str) -> None:
        launcher = (
            ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
            if ranks > 1
            else []
        )
        self.directory = directory
        self.log_path = directory / f"log-{time.monotonic_ns()}"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *launcher, "keepstep.launch", *_SMALL, *arguments],
                cwd=directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"KEEPSTEP_FAILPOINTS": failpoints},
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(self.directory / "run")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        give_up = time.monotonic() + _LONGEST_SECONDS
        while not condition():
            if time.monotonic() > give_up or self.process.poll() is not None:
                pytest.fail(f"{what} did not come to pass:\n{self.log[-4000:]}")
            time.sleep(0.05)

    def wait_for_step(self, step: int = 5) -> None:
        def reached() -> bool:
            steps = re.findall(r"step=(\d+) epoch", self.log)
            return bool(steps) and int(steps[-1]) >= step

        self.wait_for(reached, f"step {step}")

    def end(self) -> int:
        return self.process.wait(_LONGEST_SECONDS)

    def events(self, kind: str) -> list[dict[str, object]]:
        lines = [
            json.loads(line)
            for path in sorted((self.directory / "run" / "ledger").rglob("*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        return [line for line in lines if line["event"] == kind]


@contextmanager
def job(directory: Path, *arguments: str, ranks: int = 1, failpoints: str = "") -> Iterator[Job]:
    started = Job(directory, *arguments, ranks=ranks, failpoints=failpoints)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            os.killpg(started.process.pid, signal.SIGKILL)
            started.process.wait()


def assert_nothing_is_lost(done: Job, ranks: int = 1) -> None:
    stops = done.events("stop")
    assert len(stops) == ranks
    assert {stop["lost_steps"] for stop in stops} == {0}
    (newest, *_) = Catalog(done.storage).candidates()
    assert newest.step == stops[0]["step"]
    assert f"committed at step {newest.step}, nothing is lost" in done.log


def test_a_signal_to_the_launcher_is_a_checkpoint_in_time(tmp_path: Path) -> None:
    with job(tmp_path, ranks=2) as running:
        running.wait_for_step()
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 1, "which is all that torchrun ever says"
        assert_nothing_is_lost(running, ranks=2)


@pytest.mark.parametrize(
    "source",
    [
        "aws",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("SIGUSR1", "file", "gcp", "azure")
        ),
    ],
)
def test_whoever_says_it(tmp_path: Path, source: str) -> None:
    with MetadataService() as service:
        arguments = {
            "SIGUSR1": [],
            "file": ["--preemption.notice_file", str(tmp_path / "notice")],
        }.get(source, ["--preemption.cloud", source, "--preemption.metadata_url", service.url])
        with job(tmp_path, *arguments, "--preemption.every_seconds", "0.1") as running:
            running.wait_for_step()
            if source == "SIGUSR1":
                running.process.send_signal(signal.SIGUSR1)
            elif source == "file":
                (tmp_path / "notice").touch()
            else:
                service.preempt(seconds=60)
            assert running.end() == ExitCode.PREEMPTED
            assert_nothing_is_lost(running)
            assert source in running.log.split("preempted (")[1]


def test_without_time_to_save_the_last_checkpoint_stays_and_the_loss_is_told(
    tmp_path: Path,
) -> None:
    settings = ["--checkpoint.every", "5", "--checkpoint.when_busy", "skip"]
    settings += ["--preemption.grace_seconds", "2"]
    with job(tmp_path, *settings, failpoints="write.middle=sleep:4@step:5") as running:
        running.wait_for(lambda: "outcome=committed" in running.log, "a commit")
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == ExitCode.PREEMPTED_UNSAVED
        (stop,) = running.events("stop")
        (newest, *_) = Catalog(running.storage).candidates()
        assert newest.step == stop["committed_step"]
        assert stop["lost_steps"] == stop["step"] - newest.step > 0  # type: ignore[operator]
        assert f"{stop['lost_steps']} steps are lost" in running.log


@pytest.mark.long
def test_a_save_in_flight_is_finished_first(tmp_path: Path) -> None:
    settings = ["--checkpoint.every", "1000", "--preemption.notice_file", str(tmp_path / "notice")]
    with job(tmp_path, *settings, failpoints="write.middle=sleep:2@step:1000") as running:
        running.wait_for_step(1000)
        (tmp_path / "notice").touch()
        assert running.end() == ExitCode.PREEMPTED
        assert_nothing_is_lost(running)
        assert 1000 in {entry.step for entry in Catalog(running.storage).candidates()}


@pytest.mark.long
def test_an_evaluation_is_broken_off(tmp_path: Path) -> None:
    settings = ["--train.evaluate_every", "1", "--data.validation_samples", "1000000"]
    with job(tmp_path, *settings) as running:
        running.wait_for_step(1)
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == ExitCode.PREEMPTED
        assert_nothing_is_lost(running)


@pytest.mark.long
def test_a_job_that_was_preempted_goes_on_from_there(tmp_path: Path) -> None:
    with job(tmp_path) as running:
        running.wait_for_step()
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == ExitCode.PREEMPTED
    (newest, *_) = Catalog(running.storage).candidates()
    with job(tmp_path, "--train.steps", str(newest.step + 7)) as running:
        assert running.end() == 0
        assert f"resumed from {newest}" in running.log
        assert "0 steps, 0 samples" in running.log


SCRIPT = """
import os, signal, sys, time
import torch
import keepstep

model = torch.nn.Linear(2, 1)
with keepstep.open(sys.argv[1], every="1000steps") as session:
    session.track(model=model)
    session.restore()
    while session.step < 10_000:
        if session.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
        if session.tick():
            break
"""


def test_a_script_that_just_ends_after_a_preemption_is_not_complete(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "keepstep.launch.worker", str(script), str(tmp_path / "run")]
    assert subprocess.run(command, check=False, timeout=60).returncode == ExitCode.PREEMPTED
    (newest, *_) = Catalog(LocalStorage(tmp_path / "run")).candidates()
    assert newest.step < 10_000
