"""Nodes are told to go in the middle of whatever a job does (D6)."""

from keepstep.drills.catalog.nodes import GONE_ON, both_again, drill
from keepstep.drills.catalog.notices import UNHURT, told_and_started_again
from keepstep.drills.catalog.panels import COMPARED
from keepstep.drills.node_acts import Assemble, Befall, Deed, End, Hear, Reach, hold
from keepstep.drills.scenario import Drill, Ending, Leg, Scale


def notice_moments(scale: Scale) -> tuple[Drill, ...]:
    """A save, an evaluation, a load, the first rendezvous."""
    return (_in_save(scale), _in_evaluation(scale), _in_load(scale), _in_rendezvous())


def _in_save(scale: Scale) -> Drill:
    step = scale.kill_step
    return drill(
        "notice-in-save",
        "D6",
        f"All nodes are told to go in the middle of the save of step {step}. It is finished first; "
        "they end with 85.",
        Assemble(failpoints=f"write.middle=stop@rank:0@step:{step}", worlds=(2, 2)),
        Reach("write.middle", step),
        *told_and_started_again(Ending.PREEMPTED),
        judges=UNHURT,
    )


def _in_evaluation(scale: Scale) -> Drill:
    step = scale.kill_step
    return drill(
        "notice-in-evaluation",
        "D6",
        f"All nodes are told to go after step {step}, right before an evaluation. They commit, and "
        "end with 85.",
        Assemble(failpoints=hold(step), worlds=(2, 2)),
        Reach("step.after", step),
        *told_and_started_again(Ending.PREEMPTED),
        judges=UNHURT,
    )


def _in_load(scale: Scale) -> Drill:
    step = scale.kill_step
    return drill(
        "notice-in-load",
        "D6",
        "All nodes are told to go in the middle of a load. They end with 85, as training had not "
        "begun, and are started again.",
        Leg(2, f"write.middle=kill@rank:1@step:{step}", ending=Ending.KILLED),
        Assemble(failpoints="load.middle=stop@rank:0"),
        Reach("load.middle"),
        *told_and_started_again(Ending.PREEMPTED),
        judges=("endings", "nothing_lost", *COMPARED),
    )


def _in_rendezvous() -> Drill:
    return drill(
        "notice-in-rendezvous",
        "D6",
        "A node is told to go while it waits for another, before anything was trained. It ends "
        "with 85, and is started again.",
        Assemble(absent=(1,), worlds=(2,)),
        Hear("node 0", "waits for round"),
        Befall(Deed.TELL, "node 0"),
        End((("same", Ending.PREEMPTED),)),
        *both_again(),
        End(),
        judges=("undisturbed", *GONE_ON),
    )
