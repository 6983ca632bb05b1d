"""Ranks and nodes that stand still (D7)."""

from keepstep.drills.catalog.nodes import RESUMED, away, drill, moments_away
from keepstep.drills.node_acts import (
    Assemble,
    Deed,
    End,
    Join,
    Reach,
)
from keepstep.drills.scenario import Drill, Ending, Scale

_WATCHED = (
    *(("watchdog.floor_seconds", 4), ("watchdog.unlearned_seconds", 60)),
    *(("checkpoint.deadline_seconds", 20), ("checkpoint.timeout_seconds", 10)),
)
_NAMED = ("hang_is_named", *RESUMED)


def hangs(scale: Scale) -> tuple[Drill, ...]:
    """Stopped, in a loop, with the interpreter lock, and a whole node at once."""
    return (
        _stopped("hang-stopped", "step.after", scale.kill_step - 1, "after"),
        _stopped("hang-stopped-in-save", "write.middle", scale.kill_step, "while it saves"),
        _busy(scale, "hang-loop", "loop", "runs in a loop"),
        _busy(scale, "hang-lock", "hold", "keeps the interpreter lock"),
        _frozen(scale),
    )


def _stopped(name: str, site: str, step: int, moment: str) -> Drill:
    return drill(
        name,
        "D7",
        f"Rank 1 is stopped (SIGSTOP) {moment} step {step}. Its launcher finds it, kills it, and "
        "the job goes on.",
        Assemble(failpoints=f"{site}=stop@rank:1@step:{step}", settings=_WATCHED, worlds=(2, 2)),
        Reach(site, step, is_culprit=True),
        End(),
        judges=_NAMED,
    )


def _busy(scale: Scale, name: str, action: str, what: str) -> Drill:
    """Without restarts, so that the exit code shows."""
    step = scale.kill_step - 1
    return drill(
        name,
        "D7",
        f"Rank 1 of two on a node {what} after step {step}. It ends with 88 and its stack; without "
        "restarts left so does the launcher, which is started again.",
        Assemble(
            count=1,
            min_nodes=1,
            workers_per_node=2,
            failpoints=f"step.after={action}@rank:1@step:{step}",
            settings=_WATCHED,
            worlds=(2, 2),
            max_restarts=0,
        ),
        Reach("step.after", step, is_culprit=True),
        End((("node 0", Ending.HUNG),)),
        Join("node 0"),
        End(),
        judges=_NAMED,
    )


def _frozen(scale: Scale) -> Drill:
    step, later = moments_away(scale)
    return drill(
        "node-frozen",
        "D7",
        f"One of three nodes, agent and worker, is frozen after step {step}. The others go on; it "
        f"is thawed after step {later}, has done no harm, and is taken back after the next commit.",
        *away(scale, Deed.FREEZE, Deed.THAW),
        judges=("hops_keep_state", *RESUMED),
        needs=("freezer",),
    )
