"""Real agents on nodes of their own, under what happens to nodes: who steps on, in which rounds."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keepstep.testing.networks import can_use_namespaces
from keepstep.testing.nodes import Nodes, kill_tree

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]

REPEATS = int(os.environ.get("KEEPSTEP_TEST_REPEATS", "3"))
needs_namespaces = pytest.mark.skipif(
    not can_use_namespaces(), reason="cutting a network needs root and iproute2"
)
MakeNodes = Callable[..., Nodes]


@pytest.fixture
def make_nodes(tmp_path: Path) -> Iterator[MakeNodes]:
    """Nodes with a store; a failing test shows their logs."""
    made: list[Nodes] = []

    def make(count: int, **options: Any) -> Nodes:
        conf = {"last_call_timeout": "2"} | options.pop("conf", {})
        nodes = Nodes(count, tmp_path, conf=conf, **options)
        made.append(nodes)
        nodes.start_store()
        return nodes

    yield make
    for nodes in made:
        nodes.__exit__()


def test_group_is_whole_again_after_a_worker_is_killed(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(2, min_nodes=2)
    nodes.start_all()
    nodes.wait_for_world(2)
    nodes.kill_worker(1)
    nodes.wait_for_world(2, after_round=1)
    assert nodes.rounds() == {1: 2, 2: 2}
    nodes.finish()
    assert [agent.wait(60) for agent in nodes.agents.values()] == [0, 0]


@pytest.mark.long
def test_every_kill_of_a_worker_costs_one_round(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(2, min_nodes=2)
    nodes.start_all()
    number = nodes.wait_for_world(2)
    for kill in range(REPEATS):
        nodes.kill_worker(kill % 2)
        assert nodes.wait_for_world(2, after_round=number) == number + 1
        number += 1


@pytest.mark.long
def test_survivors_go_on_whenever_the_node_of_rank_0_is_lost(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(3, min_nodes=2, conf={"admit_timeout": "1"})
    nodes.start_all()
    number = nodes.wait_for_world(3)
    for _ in range(REPEATS):
        rank_0 = next(
            int(r["node"]) for r in nodes.records() if r["round"] == number and r["rank"] == 0
        )
        nodes.kill_node(rank_0)
        number = nodes.wait_for_world(2, after_round=number)
        nodes.start(rank_0)
        number = nodes.wait_for_world(3, after_round=number)
    assert number == 1 + 2 * REPEATS


@pytest.mark.long
def test_training_goes_on_while_the_store_is_away(make_nodes: MakeNodes) -> None:
    """For 300 steps of 0.1 s; the store that comes back is empty, and rounds keep counting."""
    nodes = make_nodes(2, min_nodes=2)
    nodes.start_all()
    nodes.wait_for_world(2)
    nodes.wait_for_steps(1, 5)
    nodes.kill_store()
    nodes.wait_for_steps(1, nodes.newest(0)["step"] + 300)
    nodes.start_store()
    nodes.wait_until(lambda: "store is back" in nodes.log("node-0"), "node 0 is connected again")
    nodes.wait_until(lambda: "store is back" in nodes.log("node-1"), "node 1 is connected again")
    nodes.wait_for_steps(1, nodes.newest(0)["step"] + 100)
    assert nodes.rounds() == {1: 2}
    nodes.kill_worker(0)
    nodes.wait_for_world(2, after_round=1)
    assert nodes.rounds() == {1: 2, 2: 2}


@pytest.mark.long
def test_store_lost_for_good_is_an_error_at_the_next_change_of_members(
    make_nodes: MakeNodes,
) -> None:
    nodes = make_nodes(2, min_nodes=2, conf={"store_timeout": "5"})
    nodes.start_all()
    nodes.wait_for_world(2)
    nodes.kill_store()
    nodes.wait_for_steps(1, nodes.newest(0).get("step", 0) + 100)
    nodes.kill_worker(0)
    assert [agent.wait(90) for agent in nodes.agents.values()] == [1, 1]
    for node in (0, 1):
        assert "start one there with `keepstep store`" in nodes.log(f"node-{node}")


@pytest.mark.long
@pytest.mark.parametrize("skew_seconds", [-30.0, 30.0])
def test_wrong_clock_makes_no_undersized_world(make_nodes: MakeNodes, skew_seconds: float) -> None:
    nodes = make_nodes(2, min_nodes=2)
    nodes.start(0)
    nodes.start(1, skew_seconds=skew_seconds)
    nodes.wait_for_world(2)
    assert abs(nodes.newest(1)["at"] - nodes.newest(0)["at"] - skew_seconds) < 20  # it is wrong
    nodes.kill_worker(0)
    nodes.wait_for_world(2, after_round=1)
    nodes.wait_for_steps(2, 100)
    assert nodes.rounds() == {1: 2, 2: 2}


@pytest.mark.long
@needs_namespaces
@pytest.mark.parametrize("lost", [0, 2])
def test_survivors_of_a_silent_partition_go_on_and_take_the_lost_back(
    make_nodes: MakeNodes, lost: int
) -> None:
    nodes = make_nodes(3, min_nodes=2, conf={"admit_timeout": "1"})
    nodes.start_all()
    nodes.wait_for_world(3)
    nodes.network.cut(lost)
    number = nodes.wait_for_world(2, after_round=1)
    assert nodes.agents[lost].poll() is None
    nodes.network.heal(lost)
    assert nodes.wait_for_world(3, after_round=number) == number + 1


@pytest.mark.long
@needs_namespaces
def test_store_that_vanishes_silently_holds_nobody_up(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(2, min_nodes=2)
    nodes.start_all()
    nodes.wait_for_world(2)
    nodes.network.cut(nodes.store_machine)
    nodes.wait_until(lambda: "has not answered" in nodes.log("node-0"), "node 0 notices")
    nodes.wait_for_steps(1, nodes.newest(0)["step"] + 50)
    nodes.network.heal(nodes.store_machine)
    nodes.wait_until(lambda: "store is back" in nodes.log("node-0"), "node 0 is connected again")
    nodes.wait_until(lambda: "store is back" in nodes.log("node-1"), "node 1 is connected again")
    nodes.wait_for_steps(1, nodes.newest(0)["step"] + 100)
    assert nodes.rounds() == {1: 2}


@pytest.mark.long
def test_each_burst_of_changes_costs_one_round(make_nodes: MakeNodes) -> None:
    """1 -> 4 -> 2 -> 3 nodes; newcomers are admitted after a commit, every 20 steps."""
    nodes = make_nodes(4, conf={"settle_timeout": "5"}, environ={"LIGHT_COMMIT_EVERY": "20"})
    nodes.start(0)
    nodes.wait_for_world(1)
    for node in (1, 2, 3):
        nodes.start(node)
    nodes.wait_for_world(4, after_round=1)
    for node in (2, 3):
        nodes.kill_node(node)
    nodes.wait_for_world(2, after_round=2)
    nodes.start(2)
    nodes.wait_for_world(3, after_round=3)
    assert nodes.rounds() == {1: 1, 2: 4, 3: 2, 4: 3}


@pytest.mark.long
def test_newcomer_waits_for_a_commit(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(2, conf={"settle_timeout": "1"}, environ={"LIGHT_COMMIT_EVERY": "300"})
    nodes.start(0)
    nodes.wait_for_world(1)
    nodes.start(1)
    nodes.wait_for_world(2, after_round=1)
    last = [r["step"] for r in nodes.records() if r["round"] == 1 and r["event"] == "step"][-1]
    assert last >= 300


@pytest.mark.long
def test_node_without_restarts_left_leaves_the_others_alone(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(3, min_nodes=2)
    nodes.start(0, max_restarts=0)
    nodes.start(1)
    nodes.start(2)
    nodes.wait_for_world(3)
    nodes.kill_worker(0)
    number = nodes.wait_for_world(2, after_round=1)
    assert nodes.agents[0].wait(60) == 1
    nodes.wait_for_steps(number, 20)
    nodes.start(0)  # a fresh agent under the same run id is welcome
    nodes.finish()
    assert [nodes.agents[node].wait(60) for node in (1, 2)] == [0, 0]


@pytest.mark.long
def test_agent_that_comes_after_the_end_has_nothing_to_do(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(2, max_nodes=1)
    nodes.start(0)
    nodes.wait_for_world(1)
    nodes.finish()
    assert nodes.agents[0].wait(60) == 0
    nodes.start(1)
    assert nodes.agents[1].wait(60) == 0
    assert "is complete: nothing is left to do" in nodes.log("node-1")


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace needs root")
def test_pid_1_leaves_when_told_to_during_the_first_rendezvous(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(1, min_nodes=2, max_nodes=2)
    nodes.start(0, wrap=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"))
    nodes.wait_until(lambda: "waits for round 1" in nodes.log("node-0"), "the agent waits")
    kill_tree(nodes.agents[0].pid, signal.SIGTERM)
    nodes.agents[0].wait(60)
    assert "left run job" in nodes.log("node-0")
    assert "SIGTERM came to agent 1" in nodes.log("node-0")
