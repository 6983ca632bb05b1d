"""Jobs of several nodes: nodes come and go, are told to, stand still, and are cut off."""

from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import LEDGER
from keepstep.drills.cluster import Cluster
from keepstep.drills.node_acts import (
    Assemble,
    Befall,
    Commit,
    Deed,
    End,
    Hear,
    Join,
    Reach,
    Release,
    Train,
)
from keepstep.drills.stage import Stage
from keepstep.observability.ledger import read_ledger
from keepstep.testing.freezer import Freezer
from keepstep.testing.nodes import kill_tree

_CLUSTER = "cluster"
_STACKS = "was here:"
_STACKS_LENGTH = 2000


def play_assemble(stage: Stage, act: Assemble) -> None:
    """Start the store and the agents."""
    cluster = stage.exits.enter_context(Cluster(stage, act))
    stage.held[_CLUSTER] = cluster
    stage.exits.callback(_take_down, stage, cluster)
    stage.notes["worlds"] = list(act.worlds)
    stage.notes["least_ranks"] = act.min_nodes * act.workers_per_node
    stage.notes["skew_seconds"] = list(act.skew_seconds)
    cluster.start_store()
    for node in range(act.count):
        if node not in act.absent:
            cluster.start(node, act.failpoints)


def play_join(stage: Stage, act: Join) -> None:
    """Start an agent."""
    cluster = _cluster(stage)
    node = cluster.node(act.who)
    stage.note("join", f"node {node}")
    cluster.start(node, act.failpoints)


def play_reach(stage: Stage, act: Reach) -> None:
    """Wait for a failpoint, and for what it stops to stand still."""
    cluster = _cluster(stage)
    where = act.site if act.step is None else f"{act.site} of step {act.step}"

    def has_acted() -> bool:
        fired = cluster.fired(act.site, act.step)
        stops = sum(each["action"] == "stop" for each in fired)
        return len(fired) >= act.ranks and (not stops or len(cluster.stopped()) >= act.ranks)

    cluster.await_true(has_acted, f"{act.ranks} rank(s) come to {where}")
    if act.is_culprit:
        rank = cluster.fired(act.site, act.step)[-1]["rank"]
        stage.notes.setdefault("culprits", []).append([cluster.node(f"rank {rank}"), rank])


def play_release(stage: Stage, act: Release) -> None:
    """Let stopped ranks go on."""
    del act
    stage.note("continue", "stopped ranks")
    _cluster(stage).release()


def play_befall(stage: Stage, act: Befall) -> None:
    """Do it, and note whom it befell."""
    cluster = _cluster(stage)
    if act.deed is Deed.KILL_STORE:
        cluster.nodes.kill_store()
    elif act.deed is Deed.START_STORE:
        cluster.start_store()
    else:
        node = cluster.node(act.who)
        stage.notes.setdefault("befallen", []).append(node)
        _do(stage, cluster, act.deed, node)
    is_store = act.deed in (Deed.KILL_STORE, Deed.START_STORE)
    stage.note(act.deed, "store" if is_store else f"node {cluster.last}", act.who)


def play_hear(stage: Stage, act: Hear) -> None:
    """Wait for words in logs."""
    cluster = _cluster(stage)
    for node in cluster.several(act.who):
        cluster.await_true(
            lambda node=node: cluster.has_said(node, act.words),  # type: ignore[misc]
            f"node {node} says {act.words!r}",
        )
        stage.notes.setdefault("said", []).append([node, act.words])


def play_train(stage: Stage, act: Train) -> None:
    """Wait for a step of a generation."""

    def is_made() -> bool:
        return any(
            event["event"] == "samples" and event["step"] >= act.step
            for info in stage.storage.list(LEDGER)
            for event in read_ledger(stage.storage.get(info.key))
            if event["generation"] == act.generation
        )

    _cluster(stage).await_true(is_made, f"step {act.step} of generation {act.generation}")


def play_commit(stage: Stage, act: Commit) -> None:
    """Wait for a commit."""

    def is_committed() -> bool:
        return any(
            found.step >= act.step and act.generation in (None, found.generation)
            for found in Catalog(stage.storage).candidates()
        )

    _cluster(stage).await_true(is_committed, f"a commit of step {act.step} or later")


def play_end(stage: Stage, act: End) -> None:
    """Wait for the end of agents."""
    cluster = _cluster(stage)
    for who, ending in act.ends:
        for node in cluster.several(who):
            stage.results.append(cluster.end(node, ending))


def _do(stage: Stage, cluster: Cluster, deed: Deed, node: int) -> None:
    match deed:
        case Deed.TELL:
            cluster.tell(node)
        case Deed.KILL_AGENT:
            cluster.nodes.agents[node].kill()
            _lose(stage, cluster, node)
        case Deed.KILL_NODE:
            kill_tree(cluster.nodes.agents[node].pid)
            _lose(stage, cluster, node)
        case Deed.FREEZE:
            freezer = Freezer()
            stage.exits.callback(freezer.close)
            stage.held["freezer"] = freezer
            freezer.freeze(cluster.pids(node))
        case Deed.THAW:
            stage.held["freezer"].thaw()
        case Deed.CUT:
            cluster.nodes.network.cut(node)
        case Deed.HEAL:
            cluster.nodes.network.heal(node)
        case Deed.SET_CLOCK:
            cluster.nodes.set_clock(node, 0.0)


def _lose(stage: Stage, cluster: Cluster, node: int) -> None:
    cluster.lose(node)
    outlived = {"node": node, "processes": cluster.left_alive(node)}
    stage.notes.setdefault("outlived", []).append(outlived)


def _take_down(stage: Stage, cluster: Cluster) -> None:
    """What launchers and agents have said, for judges."""
    for node in cluster.nodes.agents:
        failure = cluster.failure(node)
        if failure is not None:
            stage.notes.setdefault("failures", {})[str(node)] = failure
        _, found, stacks = cluster.nodes.log(f"node-{node}").partition(_STACKS)
        if found:
            stage.notes.setdefault("stacks", {})[str(node)] = stacks[:_STACKS_LENGTH]


def _cluster(stage: Stage) -> Cluster:
    cluster: Cluster = stage.held[_CLUSTER]
    return cluster
