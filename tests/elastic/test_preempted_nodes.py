"""Nodes of one trainer, under ``keepstep run``: some are told to go, and one is cut off."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keepstep.commit.catalog import Catalog
from keepstep.errors import ExitCode
from keepstep.storage.local import LocalStorage
from keepstep.testing.networks import can_use_namespaces
from keepstep.testing.nodes import Nodes

pytestmark = [pytest.mark.drill, pytest.mark.long, pytest.mark.timeout(600)]

needs_namespaces = pytest.mark.skipif(
    not can_use_namespaces(), reason="cutting a network needs root and iproute2"
)

_SMALL = {
    "train.steps": "1000000",
    "train.log_every": "5",
    "train.evaluate_every": "0",
    "train.threads": "1",
    "model.layers": "1",
    "model.width": "16",
    "batch.global_size": "6",
    "data.validation_samples": "64",
    "checkpoint.every": "1000000",
    "preemption.grace_seconds": "10",
}


class Trainers(Nodes):
    """The trainer on nodes that share the directory of its run."""

    def __init__(self, directory: Path, count: int, failpoints: str, **settings: str) -> None:
        words = [("--uri", str(directory / "run"))]
        words += [(f"--{name}", value) for name, value in (_SMALL | settings).items()]
        super().__init__(
            count,
            directory,
            conf={"last_call_timeout": "3"},
            worker=("-m", "keepstep.launch", *(word for pair in words for word in pair)),
            environ={"KEEPSTEP_FAILPOINTS": failpoints},
            is_keepstep_run=True,
        )
        self.storage = LocalStorage(directory / "run")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Of that kind, in the ledgers of all ranks and generations."""
        lines = [
            json.loads(line)
            for path in sorted((self.directory / "run" / "ledger").rglob("*.jsonl"))
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        return [line for line in lines if line["event"] == kind]

    def committed(self) -> list[tuple[int, int]]:
        """Step and generation of each checkpoint of the valid line, newest first."""
        return [(found.step, found.generation) for found in Catalog(self.storage).candidates()]

    def wait_for_generation(self, generation: int, *, steps: int = 5) -> None:
        """Until it has made so many steps."""

        def is_stepping() -> bool:
            made = [e for e in self.events("step") if e["generation"] == generation]
            return len(made) >= steps

        self.wait_until(is_stepping, f"{steps} steps of generation {generation}")

    def node_of_rank_0(self) -> int:
        """Only the coordinator's log tells of steps."""

        def found() -> list[int]:
            return [n for n in range(self.count) if "step=5 epoch" in self.log(f"node-{n}")]

        self.wait_until(found, "a line of the coordinator's")
        return found()[0]

    def worker_pid(self, node: int) -> int:
        children = Path(f"/proc/{self.agents[node].pid}/task/{self.agents[node].pid}/children")
        (pid,) = map(int, children.read_text().split())
        return pid

    def end(self, node: int) -> int:
        """The exit code of its agent."""
        agent = self.agents[node]
        self.wait_until(lambda: agent.poll() is not None, f"the end of node {node}")
        assert agent.returncode is not None
        return agent.returncode

    def world_sizes(self) -> dict[int, int]:
        """By generation."""
        return {
            int(path.stem.removeprefix("g")): json.loads(path.read_text())["world_size"]
            for path in (self.directory / "run" / "generations").iterdir()
            if re.fullmatch(r"g?\d+", path.stem)
        }


MakeTrainers = Callable[..., Trainers]


@pytest.fixture
def make_trainers(tmp_path: Path) -> Iterator[MakeTrainers]:
    """Three nodes, training together."""
    made: list[Trainers] = []

    def make(failpoints: str = "", **settings: str) -> Trainers:
        dotted = {name.replace("__", "."): value for name, value in settings.items()}
        nodes = Trainers(tmp_path, 3, failpoints, **dotted)
        made.append(nodes)
        nodes.start_store()
        nodes.start_all()
        return nodes

    yield make
    for nodes in made:
        nodes.__exit__()


def test_a_node_that_is_told_to_go_costs_the_others_no_step_and_no_try(
    make_trainers: MakeTrainers,
) -> None:
    nodes = make_trainers()
    nodes.wait_for_generation(1)
    nodes.tell(1)
    assert nodes.end(1) == ExitCode.PREEMPTED
    nodes.wait_for_generation(2)
    stops = nodes.events("stop")
    assert len(stops) == 3
    assert {stop["lost_steps"] for stop in stops} == {0}
    assert nodes.committed()[0] == (stops[0]["step"], 1)
    assert nodes.world_sizes() == {1: 3, 2: 2}
    first = min(e["step"] for e in nodes.events("step") if e["generation"] == 2)
    assert first == stops[0]["step"] + 1
    for node in (0, 2):
        assert nodes.agents[node].poll() is None
        assert "another node leaves; this one goes on with the others, uncounted" in nodes.log(
            f"node-{node}"
        )
        assert not (nodes.log_directory(node) / "failure.json").exists()


def test_all_nodes_that_are_told_to_go_end_as_preempted(make_trainers: MakeTrainers) -> None:
    nodes = make_trainers()
    nodes.wait_for_generation(1)
    for node in range(3):
        nodes.tell(node)
    assert [nodes.end(node) for node in range(3)] == [ExitCode.PREEMPTED] * 3
    assert nodes.world_sizes() == {1: 3}
    assert {stop["lost_steps"] for stop in nodes.events("stop")} == {0}


def test_without_time_to_save_the_checkpoint_before_is_what_the_others_go_on_from(
    make_trainers: MakeTrainers,
) -> None:
    nodes = make_trainers(
        "write.middle=sleep:4@step:200",
        checkpoint__every="200",
        checkpoint__when_busy="skip",
        preemption__grace_seconds="1",
    )
    nodes.wait_until(nodes.committed, "a commit")
    nodes.tell(1)
    assert nodes.end(1) == ExitCode.PREEMPTED_UNSAVED
    nodes.wait_for_generation(2)
    before = max(step for step, generation in nodes.committed() if generation == 1)
    lost = {(stop["committed_step"], stop["lost_steps"]) for stop in nodes.events("stop")}
    assert {step for step, _ in lost} <= {before}
    first = min(e["step"] for e in nodes.events("step") if e["generation"] == 2)
    assert first == before + 1
    assert nodes.world_sizes() == {1: 3, 2: 2}


@needs_namespaces
def test_a_coordinator_that_was_cut_off_in_the_middle_of_a_save_is_fenced(
    make_trainers: MakeTrainers,
) -> None:
    nodes = make_trainers(
        "publish.before=stop@rank:0@step:50",
        checkpoint__every="50",
        watchdog__floor_seconds="300",
    )
    nodes.wait_for_generation(1)
    cut = nodes.node_of_rank_0()
    worker = nodes.worker_pid(cut)
    nodes.wait_until(lambda: _is_stopped(worker), "rank 0 is about to publish step 50")
    nodes.network.cut(cut)
    nodes.wait_until(lambda: any(g == 2 for _, g in nodes.committed()), "the others commit")
    os.kill(worker, signal.SIGCONT)
    assert nodes.end(cut) == ExitCode.FENCED
    nodes.network.heal(cut)
    assert all(generation == 2 for _, generation in nodes.committed())
    assert nodes.world_sizes() == {1: 3, 2: 2}


@needs_namespaces
def test_a_node_that_comes_back_has_committed_nothing_while_it_was_cut_off(
    make_trainers: MakeTrainers,
) -> None:
    nodes = make_trainers(checkpoint__every="50")
    nodes.wait_until(nodes.committed, "a commit")
    cut = nodes.node_of_rank_0()
    nodes.network.cut(cut)
    nodes.wait_until(lambda: any(g == 2 for _, g in nodes.committed()), "the others commit")
    resumed = min(e["step"] for e in nodes.events("step") if e["generation"] == 2) - 1
    nodes.network.heal(cut)

    def is_back_or_fenced() -> bool:  # fenced, if a save was under way when it was cut off
        is_fenced = nodes.agents[cut].poll() == ExitCode.FENCED
        return is_fenced or nodes.world_sizes().get(3) == 3

    nodes.wait_until(is_back_or_fenced, "the end of the node's old worker")
    assert max(step for step, generation in nodes.committed() if generation == 1) == resumed


def _is_stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"
