"""What the drills on several nodes share."""

from keepstep.drills.catalog.panels import COMPARED, UNINTERRUPTED
from keepstep.drills.node_acts import Join
from keepstep.drills.scenario import Act, Drill

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
