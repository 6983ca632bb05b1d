"""Failures that a restart does not cure (D15)."""

from keepstep.drills.catalog.nodes import GONE_ON, drill
from keepstep.drills.catalog.panels import COMPARED
from keepstep.drills.node_acts import Assemble, End, Join
from keepstep.drills.scenario import Drill, Ending, Scale


def crash_loop(scale: Scale) -> tuple[Drill, ...]:
    """In a step, in a checkpoint, on a node."""
    return (_step(scale), _checkpoint(scale), _node())


def _step(scale: Scale) -> Drill:
    step = scale.kill_step - 2
    return drill(
        "crash-loop-step",
        "D15",
        f"Rank 1 raises after step {step}, whatever the restart. After three tries in vain the job "
        "ends with 93 and says why; started without the fault, it goes on.",
        Assemble(
            count=1,
            min_nodes=1,
            workers_per_node=2,
            failpoints=f"step.after=raise@rank:1@step:{step}@restart:any",
        ),
        End((("node 0", Ending.NO_PROGRESS),)),
        Join("node 0"),
        End(),
        judges=("endings", "gave_up_for_a_reason", "nothing_lost", *COMPARED),
    )


def _checkpoint(scale: Scale) -> Drill:
    poison = scale.kill_step
    rules = f"load.middle=kill@step:{poison}@restart:any;step.after=kill@rank:1@step:{poison + 2}"
    return drill(
        "crash-loop-checkpoint",
        "D15",
        f"The checkpoint of step {poison} kills whoever loads it. After two tries in vain it is "
        "set aside, and the job goes on from the one before it.",
        Assemble(count=1, min_nodes=1, workers_per_node=2, failpoints=rules),
        End(),
        judges=("endings", "stepped_over", *COMPARED),
    )


def _node() -> Drill:
    return drill(
        "crash-loop-node",
        "D15",
        "On one of two nodes a module cannot be imported. That node gives up, names the module, "
        "and leaves with 75; the other, which is enough, does the work.",
        Assemble(min_nodes=1, unimportable=((1, "pydantic"),), worlds=(1,)),
        End((("node 1", Ending.TRANSIENT), ("node 0", Ending.COMPLETE))),
        judges=("gave_up_for_a_reason", *GONE_ON),
    )
