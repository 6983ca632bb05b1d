"""The batch script for Slurm, with an ``srun`` and an ``scontrol`` that only pretend."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keepstep.testing.nodes import kill_tree

pytestmark = pytest.mark.drill

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"

# As the real one: what is behind its options is executed on each node, and signals are handed on.
_SRUN = """
echo "$@" > srun
while [ "$1" != keepstep ]; do shift; done
told= task=
trap 'told=yes; [ -z "$task" ] || kill -USR1 "$task"' USR1
"$@" &
task=$!
[ -z "$told" ] || kill -USR1 "$task"
while :; do
  told=; code=0
  wait "$task" || code=$?
  [ -n "$told" ] || exit "$code"
done
"""

_SLEEP = """
echo "$@" >> slept
exec {sleep} "$@"
"""

_SCONTROL = """
echo "$@" >> scontrol
[ "$1" != show ] || echo "   JobState=$STATE Reason=None"
"""

# The agent ends with CODE, or with TOLD, or 85, when it is told.
_KEEPSTEP = """
echo "$@" > "$1"
echo $$ > "$1-pid"
case "$1" in
  store) exec sleep 100 ;;
  run)
    [ -z "$CODE" ] || exit "$CODE"
    trap 'exit "${TOLD:-85}"' USR1
    touch ready
    while :; do sleep 0.02; done ;;
esac
"""

_REAL_KEEPSTEP = f"""
exec {sys.executable} -c 'import sys
from keepstep.cli.main import main
sys.exit(main(sys.argv[1:]))' "$@"
"""


class Batch:
    """The script at work in a directory, where the pretenders write down what they are told."""

    def __init__(self, directory: Path, keepstep: str, **environ: str) -> None:
        self.directory = directory
        programs = directory / "bin"
        programs.mkdir()
        sleep = _SLEEP.format(sleep=shutil.which("sleep"))
        pretenders = {"srun": _SRUN, "scontrol": _SCONTROL, "keepstep": keepstep, "sleep": sleep}
        for name, text in pretenders.items():
            (programs / name).write_text(f"#!/bin/sh{text}")
            (programs / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURMD_NODENAME": "127.0.0.1"}
        path = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [shutil.which("sh") or "sh", SCRIPT, "recipe.toml", "--seed", "1"],
                cwd=directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | slurm | path | {"STATE": "RUNNING", "CODE": ""} | environ,
            )

    def said(self, name: str) -> str:
        path = self.directory / name
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        give_up = time.monotonic() + 90
        while not condition():
            if time.monotonic() > give_up:
                pytest.fail(f"waited for {what}:\n{self.said('log')[-4000:]}")
            time.sleep(0.02)

    def tell(self) -> None:
        self.process.send_signal(signal.SIGUSR1)

    def end(self) -> int:
        return self.process.wait(90)


MakeBatch = Callable[..., Batch]


@pytest.fixture
def make_batch(tmp_path: Path) -> Iterator[MakeBatch]:
    made: list[Batch] = []

    def make(keepstep: str = _KEEPSTEP, **environ: str) -> Batch:
        made.append(Batch(tmp_path, keepstep, **environ))
        return made[-1]

    yield make
    for batch in made:
        kill_tree(batch.process.pid)
        batch.process.wait()


def test_the_notice_is_handed_on_and_the_job_is_queued_again(make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch.wait_until((batch.directory / "ready").exists, "the agent")
    batch.tell()
    assert batch.end() == 85, batch.said("log")
    assert batch.said("scontrol").splitlines() == ["show job 7", "requeue 7"]


@pytest.mark.parametrize("code", [75, 85, 86, 88])
def test_what_another_start_may_cure_is_queued_again(make_batch: MakeBatch, code: int) -> None:
    batch = make_batch(CODE=str(code))
    assert batch.end() == code, batch.said("log")
    assert "requeue 7" in batch.said("scontrol")


@pytest.mark.parametrize("code", [87, 137])
def test_a_node_that_was_lost_does_not_keep_a_preempted_job_from_the_queue(
    make_batch: MakeBatch, code: int
) -> None:
    batch = make_batch(TOLD=str(code))
    batch.wait_until((batch.directory / "ready").exists, "the agent")
    batch.tell()
    assert batch.end() == 86, batch.said("log")
    assert "requeue 7" in batch.said("scontrol")


def test_a_notice_does_not_hide_what_no_start_would_cure(make_batch: MakeBatch) -> None:
    batch = make_batch(TOLD="78")
    batch.wait_until((batch.directory / "ready").exists, "the agent")
    batch.tell()
    assert batch.end() == 78, batch.said("log")
    assert batch.said("scontrol") == ""


def test_a_store_that_failed_is_given_time(make_batch: MakeBatch) -> None:
    batch = make_batch(CODE="69", STORE_PAUSE="0.07", JOB_STORE="elsewhere")
    assert batch.end() == 69, batch.said("log")
    assert batch.said("slept") == "0.07\n"
    assert "requeue 7" in batch.said("scontrol")


@pytest.mark.parametrize("code", [0, 1, 78, 87, 93])
def test_what_is_over_is_not(make_batch: MakeBatch, code: int) -> None:
    batch = make_batch(CODE=str(code))
    assert batch.end() == code, batch.said("log")
    assert batch.said("scontrol") == ""


def test_a_canceled_job_stays_canceled(make_batch: MakeBatch) -> None:
    batch = make_batch(CODE="85", STATE="COMPLETING")
    assert batch.end() == 85, batch.said("log")
    assert batch.said("scontrol").splitlines() == ["show job 7"]


def test_the_agent_is_started_by_srun_itself_and_meets_at_a_store_on_this_node(
    make_batch: MakeBatch,
) -> None:
    batch = make_batch(SLURM_RESTART_COUNT="2", SLURM_CPUS_PER_TASK="4")
    batch.wait_until((batch.directory / "ready").exists, "the agent")
    batch.wait_until(lambda: batch.said("store-pid"), "the store")
    options, _, agent = batch.said("srun").partition(" keepstep run ")
    assert "--ntasks-per-node=1" in options.split()
    assert "--cpus-per-task=4" in options.split()
    assert agent.split()[-5:] == ["-m", "keepstep.launch", "recipe.toml", "--seed", "1"]
    assert "--rdzv-backend=keepstep" in agent.split()
    assert "--rdzv-endpoint=127.0.0.1:20007" in agent.split()
    assert "--rdzv-id=7.2" in agent.split()
    assert batch.said("store").split() == ["store", "--port", "20007"]
    batch.tell()
    batch.end()
    store = Path("/proc", batch.said("store-pid").strip())
    batch.wait_until(lambda: not store.exists(), "the end of the store")


def test_a_store_elsewhere_is_used(make_batch: MakeBatch) -> None:
    batch = make_batch(JOB_STORE="elsewhere:1", CODE="0")
    assert batch.end() == 0, batch.said("log")
    assert "--rdzv-endpoint=elsewhere:1" in batch.said("run").split()
    assert batch.said("store") == ""


def test_what_slurm_is_asked_for() -> None:
    lines = SCRIPT.read_text().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=B:USR1@120", "--requeue", "--ntasks-per-node=1"} <= set(asked)


@pytest.mark.long
def test_the_trainer_commits_when_slurm_tells(make_batch: MakeBatch) -> None:
    batch = make_batch(
        _REAL_KEEPSTEP,
        NODE_PROCESSES="1",
        KEEPSTEP_URI="run",
        KEEPSTEP_TRAIN__STEPS="1000000",
        KEEPSTEP_TRAIN__LOG_EVERY="5",
        KEEPSTEP_TRAIN__EVALUATE_EVERY="0",
        KEEPSTEP_MODEL__LAYERS="1",
        KEEPSTEP_MODEL__WIDTH="16",
        KEEPSTEP_DATA__VALIDATION_SAMPLES="64",
        KEEPSTEP_CHECKPOINT__EVERY="1000000",
    )
    (batch.directory / "recipe.toml").write_text("")
    batch.wait_until(lambda: "step=5 epoch" in batch.said("log"), "a few steps")
    batch.tell()
    assert batch.end() == 85, batch.said("log")
    assert "nothing is lost" in batch.said("log")
    assert "requeue 7" in batch.said("scontrol")
