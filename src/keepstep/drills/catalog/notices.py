"""Nodes are told to go (D6)."""

from keepstep.drills.catalog.nodes import GONE_ON, RESUMED, both_again, drill
from keepstep.drills.node_acts import (
    Assemble,
    Befall,
    Deed,
    End,
    Hear,
    Join,
    Reach,
    Release,
    hold,
    pace,
)
from keepstep.drills.scenario import Act, Drill, Ending, Leg, Scale

_TOLD = "SIGTERM"
_BOTH = (Befall(Deed.TELL, "node 0"), Befall(Deed.TELL, "node 1"), Hear("all", _TOLD))
_UNHURT = ("left_without_loss", *RESUMED)


def notices(scale: Scale) -> tuple[Drill, ...]:
    """One node, all nodes, too late, twice, and in the middle of whatever a job does."""
    return (
        _one_of_three(scale),
        _all_in_training(scale),
        _too_late(scale),
        _twice(scale),
        _in_save(scale),
        _in_evaluation(scale),
        _in_load(scale),
        _in_rendezvous(),
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
        judges=("others_not_charged", "hops_keep_state", *_UNHURT),
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
        *_told_and_started_again(Ending.PREEMPTED),
        judges=_UNHURT,
    )


def _too_late(scale: Scale) -> Drill:
    save, step = scale.kill_step, scale.kill_step + 2
    return drill(
        "notice-too-late",
        "D6",
        f"All nodes are told to go after step {step}, with 1 s to do so, while the save of step "
        f"{save} takes 6 s. They end with 86 and say what is lost.",
        Assemble(
            failpoints=f"write.middle=sleep:6@step:{save};{hold(step)};{_paced(step)}",
            settings=(("preemption.grace_seconds", 1), ("checkpoint.when_busy", "skip")),
            worlds=(2, 2),
        ),
        Reach("step.after", step),
        *_told_and_started_again(Ending.PREEMPTED_UNSAVED),
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


def _in_save(scale: Scale) -> Drill:
    step = scale.kill_step
    return drill(
        "notice-in-save",
        "D6",
        f"All nodes are told to go in the middle of the save of step {step}. It is finished first; "
        "they end with 85.",
        Assemble(failpoints=f"write.middle=stop@rank:0@step:{step}", worlds=(2, 2)),
        Reach("write.middle", step),
        *_told_and_started_again(Ending.PREEMPTED),
        judges=_UNHURT,
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
        *_told_and_started_again(Ending.PREEMPTED),
        judges=_UNHURT,
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
        *_told_and_started_again(Ending.PREEMPTED),
        judges=("endings", "nothing_lost", *GONE_ON[2:]),
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


def _told_and_started_again(ending: Ending) -> tuple[Act, ...]:
    return (*_BOTH, Release(), End((("all", ending),)), *both_again(), End())


def _paced(step: int) -> str:
    return pace(step + 1, step + 4, restart=0)
