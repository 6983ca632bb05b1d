"""A node is cut off from the others without a word (D8)."""

from keepstep.drills.catalog.nodes import GONE_ON, RESUMED, away, drill, moments_away
from keepstep.drills.node_acts import (
    Assemble,
    Befall,
    Commit,
    Deed,
    End,
    Reach,
    Release,
)
from keepstep.drills.scenario import Drill, Ending, Scale

_NEEDS = ("network-namespaces",)


def partition(scale: Scale) -> tuple[Drill, ...]:
    """Healed after the others have gone on; and the coordinator, in the middle of a save."""
    return (_healed(scale), _coordinator(scale))


def _healed(scale: Scale) -> Drill:
    step, later = moments_away(scale)
    return drill(
        "partition-healed",
        "D8",
        f"One of three nodes is cut off after step {step}. The others go on; it is connected again "
        f"after step {later}, and taken back after the next commit.",
        *away(scale, Deed.CUT, Deed.HEAL),
        judges=("hops_keep_state", *RESUMED),
        needs=_NEEDS,
    )


def _coordinator(scale: Scale) -> Drill:
    step = scale.kill_step
    return drill(
        "partition-in-save",
        "D8",
        f"The node of rank 0 is cut off while it is about to publish step {step}. The others go on "
        "and commit; then it does too, and is fenced: it ends with 87, and nothing of it counts.",
        Assemble(
            count=3,
            failpoints=f"publish.before=stop@rank:0@step:{step}",
            settings=(("watchdog.floor_seconds", 300),),
            worlds=(3, 2),
        ),
        Reach("publish.before", step),
        Befall(Deed.CUT, "rank 0"),
        Commit(step, generation=2),
        Release(),
        End((("same", Ending.FENCED), ("others", Ending.COMPLETE))),
        judges=("late_commit_is_void", "hops_keep_state", "restored_exactly", *GONE_ON),
        needs=_NEEDS,
    )
