"""An agent or a whole node is killed (D5)."""

from keepstep.drills.catalog.nodes import RESUMED, drill
from keepstep.drills.node_acts import (
    Assemble,
    Befall,
    Commit,
    Deed,
    End,
    Join,
    Reach,
    Release,
    hold,
)
from keepstep.drills.scenario import Drill, Scale


def agents(scale: Scale) -> tuple[Drill, ...]:
    """Alone, with its workers, that of rank 0, one that never comes back; or one rank of a node."""
    agent, node = Deed.KILL_AGENT, Deed.KILL_NODE
    return (
        _replaced(scale, "agent-killed", agent, "rank 1", "The agent of rank 1 is killed alone"),
        _replaced(scale, "node-lost", node, "rank 1", "The node of rank 1 is killed"),
        _replaced(scale, "node-lost-rank-0", node, "rank 0", "The node of rank 0 is killed"),
        _for_good(scale),
        _one_rank(scale),
    )


def _replaced(scale: Scale, name: str, deed: Deed, who: str, what: str) -> Drill:
    step = scale.kill_step - 1
    return drill(
        name,
        "D5",
        f"{what} after step {step}, of two nodes. Nothing of it lives on; it is started again, and "
        "the job goes on from the newest commit.",
        Assemble(failpoints=hold(step), worlds=(2, 2)),
        Reach("step.after", step),
        Commit(step - scale.save_every + 1),
        Befall(deed, who),
        Release(),
        Join("same"),
        End(),
        judges=("died_with_agent", *RESUMED),
    )


def _for_good(scale: Scale) -> Drill:
    step = scale.kill_step - 1
    return drill(
        "node-lost-for-good",
        "D5",
        f"One of three nodes is killed after step {step} and never comes back. The others, of "
        "which two are enough, go on to the end.",
        Assemble(count=3, failpoints=hold(step), worlds=(3, 2)),
        Reach("step.after", step),
        Commit(step - scale.save_every + 1),
        Befall(Deed.KILL_NODE, "rank 2"),
        Release(),
        End(),
        judges=("died_with_agent", "hops_keep_state", *RESUMED),
    )


def _one_rank(scale: Scale) -> Drill:
    step = scale.kill_step - 1
    return drill(
        "node-rank-killed",
        "D5",
        f"One of four ranks on two nodes is killed after step {step}. On the other node one rank "
        "has lost a peer, and the launcher ends the other: that node goes on as well.",
        Assemble(
            workers_per_node=2, failpoints=f"step.after=kill@rank:3@step:{step}", worlds=(4, 4)
        ),
        End(),
        judges=("interrupted", *RESUMED),
    )
