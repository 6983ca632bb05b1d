"""Nodes are told to go (D6)."""

from keepstep.drills.catalog.nodes import RESUMED, both_again, drill
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
    hold,
    pace,
)
from keepstep.drills.scenario import Act, Drill, Ending, Scale

_TOLD = "SIGTERM"
_BOTH = (Befall(Deed.TELL, "node 0"), Befall(Deed.TELL, "node 1"), Hear("all", _TOLD))
UNHURT = ("left_without_loss", *RESUMED)


def notices(scale: Scale) -> tuple[Drill, ...]:
    """One node, all nodes, too late, and twice."""
    return (
        _one_of_three(scale),
        _all_in_training(scale),
        _too_late(scale),
        _twice(scale),
    )


def _one_of_three(scale: Scale) -> Drill:
    step = scale.kill_step - 2
    return drill(
        "notice-one",
        "D6",
        f"One of three nodes is told to go after step {step}, with 10 s to do so. It ends with 85; "
        "the others lose no step, and go on uncounted.",
        Assemble(
            count=3,
            failpoints=f"{hold(step)};{_paced(step)}",
            settings=(("preemption.grace_seconds", 10),),
            worlds=(3, 2),
        ),
        Reach("step.after", step),
        Befall(Deed.TELL, "rank 1"),
        Hear("same", _TOLD),
        Release(),
        End((("same", Ending.PREEMPTED), ("others", Ending.COMPLETE))),
        judges=("others_not_charged", "hops_keep_state", *UNHURT),
    )


def _all_in_training(scale: Scale) -> Drill:
    step = scale.kill_step - 2
    return drill(
        "notice-all",
        "D6",
        f"All nodes are told to go after step {step}. They commit, end with 85, and are started "
        "again.",
        Assemble(failpoints=f"{hold(step)};{_paced(step)}", worlds=(2, 2)),
        Reach("step.after", step),
        *told_and_started_again(Ending.PREEMPTED),
        judges=UNHURT,
    )


def _too_late(scale: Scale) -> Drill:
    slow, step = scale.save(2), scale.kill_step - 2
    return drill(
        "notice-too-late",
        "D6",
        f"All nodes are told to go after step {step}, with 5 s to do so, of a job whose save of "
        f"step {slow} took 8 s. They save nothing, end with 86 and say what is lost.",
        Assemble(
            failpoints=f"write.middle=sleep:8@step:{slow};{hold(step)};{_paced(step)}",
            settings=(("preemption.grace_seconds", 5),),
            worlds=(2, 2),
        ),
        Reach("step.after", step),
        Commit(step - scale.save_every + 2),
        *told_and_started_again(Ending.PREEMPTED_UNSAVED),
        judges=("loss_is_told", *RESUMED),
    )


def _twice(scale: Scale) -> Drill:
    step = scale.kill_step + 1
    slow = ";".join(f"write.middle=sleep:9@step:{n}" for n in range(step, step + 4))
    return drill(
        "notice-twice",
        "D6",
        f"One of two nodes is told to go after step {step}, and again while it saves for that. It "
        "ends at once, with 86.",
        Assemble(failpoints=f"{slow};{hold(step)};{_paced(step)}", worlds=(2, 2)),
        Reach("step.after", step),
        Befall(Deed.TELL, "rank 1"),
        Hear("same", _TOLD),
        Release(),
        Reach("write.middle", ranks=2),
        Befall(Deed.TELL, "same"),
        End((("same", Ending.PREEMPTED_UNSAVED),)),
        Join("same"),
        End(),
        judges=RESUMED,
    )


def told_and_started_again(ending: Ending) -> tuple[Act, ...]:
    return (*_BOTH, Release(), End((("all", ending),)), *both_again(), End())


def _paced(step: int) -> str:
    return pace(step + 1, step + 4, restart=0)
