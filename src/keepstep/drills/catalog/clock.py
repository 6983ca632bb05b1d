"""Clocks are wrong (D13)."""

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

_JUDGES = ("never_undersized", "resumed_newest", *RESUMED)


def clock(scale: Scale) -> tuple[Drill, ...]:
    """By half a minute, by an hour, and set right in the middle of a save."""
    return (
        _skewed(scale, "clock-seconds", 30, "half a minute"),
        _skewed(scale, "clock-hours", 3600, "an hour"),
        _set_right(scale),
    )


def _skewed(scale: Scale, name: str, seconds: float, words: str) -> Drill:
    step = scale.kill_step - 1
    return drill(
        name,
        "D13",
        f"The clock of one node is {words} ahead, that of the other {words} behind. The node of "
        f"rank 0 is killed after step {step} and started again.",
        Assemble(failpoints=hold(step), skew_seconds=(seconds, -seconds), worlds=(2, 2)),
        Reach("step.after", step),
        Commit(step - scale.save_every + 1),
        Befall(Deed.KILL_NODE, "rank 0"),
        Join("same"),
        End(),
        judges=("clocks_were_wrong", *_JUDGES),
    )


def _set_right(scale: Scale) -> Drill:
    step, killed = scale.kill_step, scale.kill_step + scale.save_every + 1
    rules = f"publish.before=stop@rank:0@step:{step};{hold(killed)}"
    return drill(
        "clock-set-right",
        "D13",
        f"All clocks are an hour ahead, and that of rank 0 is set right while step {step} is "
        f"published. After step {killed} the node of rank 1 is killed and started again.",
        Assemble(failpoints=rules, skew_seconds=(3600, 3600), worlds=(2, 2)),
        Reach("publish.before", step),
        Befall(Deed.SET_CLOCK, "rank 0"),
        Release(),
        Reach("step.after", killed),
        Commit(killed - 1),
        Befall(Deed.KILL_NODE, "rank 1"),
        Release(),
        Join("same"),
        End(),
        judges=("clock_stepped_back", *_JUDGES),
    )
