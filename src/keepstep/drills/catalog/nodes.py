"""What the drills on several nodes share."""

from keepstep.drills.catalog.panels import COMPARED, UNINTERRUPTED
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
from keepstep.drills.scenario import Act, Drill, Scale

GONE_ON = ("endings", "worlds_as_planned", *UNINTERRUPTED)
"""Nodes met, and the run is that of the uninterrupted one: nothing has to resume."""

RESUMED = ("endings", "worlds_as_planned", "nothing_lost", *COMPARED)
"""Nodes came or went, and the job went on from a checkpoint."""


def drill(
    name: str,
    family: str,
    description: str,
    *acts: Act,
    judges: tuple[str, ...],
    needs: tuple[str, ...] = (),
) -> Drill:
    """On DDP, with the settings of all drills: they share one uninterrupted run."""
    return Drill(
        name=name,
        family=family,
        description=description,
        strategy="ddp",
        acts=acts,
        judges=judges,
        needs=needs,
    )


def both_again(failpoints: str = "") -> tuple[Act, ...]:
    """Two nodes are started once more."""
    return (Join("node 0", failpoints), Join("node 1", failpoints))


def moments_away(scale: Scale) -> tuple[int, int]:
    """The steps after which one of three nodes goes, and comes back."""
    return scale.kill_step - 1, scale.kill_step + 2


def away(scale: Scale, goes: Deed, comes: Deed) -> tuple[Act, ...]:
    """One of three nodes is away for a while, and is taken back after the next commit."""
    step, later = moments_away(scale)
    return (
        Assemble(
            count=3,
            failpoints=f"{hold(step)};{hold(later, restart=1)};{pace(later + 1, scale.steps)}",
            worlds=(3, 2, 3),
        ),
        Reach("step.after", step),
        Commit(step - scale.save_every + 1),
        Hear("rank 2", "waits for round"),
        Befall(goes, "same"),
        Release(),
        Reach("step.after", later),
        Befall(comes, "same"),
        Hear("same", "waits for round"),
        Release(),
        End(),
    )
