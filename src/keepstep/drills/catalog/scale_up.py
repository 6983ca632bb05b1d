"""Nodes come while the job runs (D14)."""

from keepstep.drills.catalog.nodes import RESUMED, drill
from keepstep.drills.node_acts import Assemble, End, Hear, Join, Reach, Release, hold, pace
from keepstep.drills.scenario import Drill, Scale

_WAITS = "waits for round"
_JUDGES = ("hops_keep_state", "once_per_epoch", *RESUMED)


def scale_up(scale: Scale) -> tuple[Drill, ...]:
    """One after the other, and two at once."""
    return (_one_by_one(scale), _two_at_once(scale))


def _one_by_one(scale: Scale) -> Drill:
    first, second = scale.save(1) + 3, scale.kill_step
    slow = f"{pace(first + 1, second - 1)};{pace(second + 1, scale.steps)}"
    rules = f"{hold(first)};{hold(second, restart='any')};{slow}"
    return drill(
        "scale-1-2-3",
        "D14",
        f"A job on one node is joined by a second after step {first}, and by a third after step "
        f"{second}. Each is taken in after a commit, at the cost of one restart.",
        Assemble(count=3, min_nodes=1, absent=(1, 2), failpoints=rules, worlds=(1, 2, 3)),
        Reach("step.after", first),
        Join("node 1", rules),
        Hear("node 1", _WAITS),
        Release(),
        Reach("step.after", second),
        Join("node 2", slow),
        Hear("node 2", _WAITS),
        Release(),
        End(),
        judges=_JUDGES,
    )


def _two_at_once(scale: Scale) -> Drill:
    step = scale.kill_step - 2
    slow = pace(step + 1, scale.steps)
    return drill(
        "scale-1-3",
        "D14",
        f"A job on one node is joined by two more after step {step}. Both are taken in after a "
        "commit, at the cost of one restart.",
        Assemble(
            count=3,
            min_nodes=1,
            absent=(1, 2),
            failpoints=f"{hold(step)};{slow}",
            worlds=(1, 3),
        ),
        Reach("step.after", step),
        Join("node 1"),
        Join("node 2"),
        Hear("node 1", _WAITS),
        Hear("node 2", _WAITS),
        Release(),
        End(),
        judges=_JUDGES,
    )
