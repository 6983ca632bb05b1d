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
# It ends with 1 if a node was lost, else with 128 + a signal, else with the largest code.
_SRUN = """
echo "$@" > srun
while [ "$1" != keepstep ]; do shift; done
told= tasks= lost= largest=0
trap 'told=yes; [ -z "$tasks" ] || kill -USR1 $tasks' USR1
for fate in $NODES; do
  if [ "$fate" = lost ]; then lost=yes; continue; fi
  FATE="$fate" "$@" &
  tasks="$tasks $!"
done
[ -z "$told" ] || kill -USR1 $tasks
for task in $tasks; do
  while :; do
    told=; code=0
    wait "$task" || code=$?
    [ -n "$told" ] || break
  done
  [ "$code" -le "$largest" ] || largest=$code
done
[ -z "$lost" ] || exit 1
exit "$largest"
"""

_SLEEP = """
echo "$@" >> slept
exec {sleep} "$@"
"""

_SCONTROL = """
echo "$@" >> scontrol
[ "$1" != show ] || echo "   JobState=$STATE Reason=None"
"""

# The agent of a node ends with its FATE, a code or a signal; told: with what follows that, or 85.
_KEEPSTEP = """
if [ "$1 $2" = "store --done" ]; then
  echo "$@" > asked
  exit "$DONE"
fi
echo "$@" > "$1"
echo $$ > "$1-pid"
end() {
  case $1 in
    SIG*) kill -s "${1#SIG}" $$ ;;
    *) exit "$1" ;;
  esac
}
case "$1" in
  store) exec sleep 100 ;;
  run)
    case $FATE in
      told*)
        code="${FATE#told}"
        trap 'end "${code:-85}"' USR1
        echo >> ready
        while :; do sleep 0.02; done ;;
      *) end "$FATE" ;;
    esac ;;
esac
"""

_REAL_KEEPSTEP = f"""
exec {sys.executable} -c 'import sys
from keepstep.cli.main import main
sys.exit(main(sys.argv[1:]))' "$@"
"""

_TINY = {
    "NODE_PROCESSES": "1",
    "KEEPSTEP_URI": "run",
    "KEEPSTEP_TRAIN__LOG_EVERY": "5",
    "KEEPSTEP_TRAIN__EVALUATE_EVERY": "0",
    "KEEPSTEP_MODEL__LAYERS": "1",
    "KEEPSTEP_MODEL__WIDTH": "16",
    "KEEPSTEP_DATA__VALIDATION_SAMPLES": "64",
    "KEEPSTEP_CHECKPOINT__EVERY": "1000000",
}


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
                env=os.environ
                | slurm
                | path
                | {"STATE": "RUNNING", "NODES": "told", "DONE": "75"}
                | environ,
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
    batch.wait_until(lambda: batch.said("ready"), "the agent")
    batch.tell()
    assert batch.end() == 85, batch.said("log")
    assert batch.said("scontrol").splitlines() == ["show job 7", "requeue 7"]


@pytest.mark.parametrize("code", [1, 71, 75, 85, 86, 88])
def test_what_another_start_may_cure_is_queued_again(make_batch: MakeBatch, code: int) -> None:
    batch = make_batch(NODES=f"0 {code}", STORE_PAUSE="0")
    assert batch.end() == code, batch.said("log")
    assert "requeue 7" in batch.said("scontrol")


@pytest.mark.parametrize(
    ("nodes", "code"), [("lost 75", 1), ("lost 78", 1), ("SIGKILL 75", 137), ("SIGUSR2 75", 140)]
)
def test_a_job_that_lost_a_node_is_queued_again(
    make_batch: MakeBatch, nodes: str, code: int
) -> None:
    batch = make_batch(NODES=nodes)
    assert batch.end() == code, batch.said("log")
    assert batch.said("scontrol").splitlines() == ["show job 7", "requeue 7"]


@pytest.mark.parametrize("nodes", ["lost told", "SIGKILL told", "told told87", "told toldSIGKILL"])
def test_a_node_that_was_lost_does_not_keep_a_preempted_job_from_the_queue(
    make_batch: MakeBatch, nodes: str
) -> None:
    batch = make_batch(NODES=nodes, SLURM_RESTART_COUNT="1000")
    batch.wait_until(lambda: len(batch.said("ready")) == nodes.count("told"), "the agents")
    batch.tell()
    assert batch.end() == 86, batch.said("log")
    assert "requeue 7" in batch.said("scontrol")


def test_a_notice_does_not_hide_what_no_start_would_cure(make_batch: MakeBatch) -> None:
    batch = make_batch(NODES="told78")
    batch.wait_until(lambda: batch.said("ready"), "the agent")
    batch.tell()
    assert batch.end() == 78, batch.said("log")
    assert batch.said("scontrol") == ""


@pytest.mark.parametrize("nodes", ["lost 0", "SIGKILL 0", "85 0", "87 0"])
def test_a_complete_job_ends_well_whatever_srun_ends_with(
    make_batch: MakeBatch, nodes: str
) -> None:
    batch = make_batch(NODES=nodes, DONE="0", JOB_STORE="elsewhere:1", SLURM_RESTART_COUNT="2")
    assert batch.end() == 0, batch.said("log")
    assert batch.said("asked") == "store --done 7.2 --endpoint elsewhere:1\n"
    assert batch.said("scontrol") == ""


@pytest.mark.parametrize("answer", [69, 124])
def test_a_store_that_does_not_answer_does_not_keep_a_job_from_the_queue(
    make_batch: MakeBatch, answer: int
) -> None:
    batch = make_batch(NODES="lost 75", DONE=str(answer))
    assert batch.end() == 1, batch.said("log")
    assert "requeue 7" in batch.said("scontrol")


@pytest.mark.parametrize("nodes", ["lost 75", "SIGKILL", "69", "71", "75", "88"])
def test_failures_do_not_queue_a_job_without_end(make_batch: MakeBatch, nodes: str) -> None:
    batch = make_batch(NODES=nodes, SLURM_RESTART_COUNT="3", JOB_REQUEUES="3", STORE_PAUSE="0")
    assert batch.end() not in (0, 86), batch.said("log")
    assert batch.said("scontrol").splitlines() == ["show job 7"]
    assert "queued again 3 times, and JOB_REQUEUES is 3: look above" in batch.said("log")


@pytest.mark.parametrize(("restarts", "is_queued"), [("19", True), ("20", False)])
def test_twenty_requeues_are_the_bound(
    make_batch: MakeBatch, restarts: str, is_queued: bool
) -> None:
    batch = make_batch(NODES="75", SLURM_RESTART_COUNT=restarts)
    assert batch.end() == 75, batch.said("log")
    assert ("requeue 7" in batch.said("scontrol")) is is_queued


def test_preemption_queues_a_job_without_end(make_batch: MakeBatch) -> None:
    batch = make_batch(NODES="85", SLURM_RESTART_COUNT="1000")
    assert batch.end() == 85, batch.said("log")
    assert "requeue 7" in batch.said("scontrol")


def test_a_bound_that_is_no_number_is_refused_at_the_start(make_batch: MakeBatch) -> None:
    batch = make_batch(JOB_REQUEUES="many")
    assert batch.end() != 0
    assert "many" in batch.said("log")
    assert batch.said("srun") == ""


def test_a_store_that_failed_is_given_time(make_batch: MakeBatch) -> None:
    batch = make_batch(NODES="69", STORE_PAUSE="0.07", JOB_STORE="elsewhere")
    assert batch.end() == 69, batch.said("log")
    assert batch.said("slept") == "0.07\n"
    assert "requeue 7" in batch.said("scontrol")


@pytest.mark.parametrize("code", [0, 2, 78, 87, 93, 127])
def test_what_is_over_is_not(make_batch: MakeBatch, code: int) -> None:
    batch = make_batch(NODES=f"0 {code}")
    assert batch.end() == code, batch.said("log")
    assert batch.said("scontrol") == ""


@pytest.mark.parametrize(("nodes", "code"), [("85", 85), ("lost 75", 1), ("SIGKILL", 137)])
def test_a_canceled_job_stays_canceled(make_batch: MakeBatch, nodes: str, code: int) -> None:
    batch = make_batch(NODES=nodes, STATE="COMPLETING")
    assert batch.end() == code, batch.said("log")
    assert batch.said("scontrol").splitlines() == ["show job 7"]
    assert "is being canceled" in batch.said("log")


def test_the_agent_is_started_by_srun_itself_and_meets_at_a_store_on_this_node(
    make_batch: MakeBatch,
) -> None:
    batch = make_batch(SLURM_RESTART_COUNT="2", SLURM_CPUS_PER_TASK="4")
    batch.wait_until(lambda: batch.said("ready"), "the agent")
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
    batch = make_batch(JOB_STORE="elsewhere:1", NODES="0")
    assert batch.end() == 0, batch.said("log")
    assert "--rdzv-endpoint=elsewhere:1" in batch.said("run").split()
    assert batch.said("store") == ""


def test_what_slurm_is_asked_for() -> None:
    lines = SCRIPT.read_text().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=B:USR1@120", "--requeue", "--ntasks-per-node=1"} <= set(asked)


@pytest.mark.long
def test_the_trainer_commits_when_slurm_tells(make_batch: MakeBatch) -> None:
    batch = make_batch(_REAL_KEEPSTEP, **_TINY, KEEPSTEP_TRAIN__STEPS="1000000")
    (batch.directory / "recipe.toml").write_text("")
    batch.wait_until(lambda: "step=5 epoch" in batch.said("log"), "a few steps")
    batch.tell()
    assert batch.end() == 85, batch.said("log")
    assert "nothing is lost" in batch.said("log")
    assert "requeue 7" in batch.said("scontrol")


@pytest.mark.long
def test_the_store_knows_that_a_job_is_complete_that_lost_a_node(make_batch: MakeBatch) -> None:
    batch = make_batch(_REAL_KEEPSTEP, **_TINY, KEEPSTEP_TRAIN__STEPS="5", NODES="told lost")
    (batch.directory / "recipe.toml").write_text("")
    assert batch.end() == 0, batch.said("log")
    assert "srun ended with 1, and the job is complete" in batch.said("log")
    assert batch.said("scontrol") == ""
