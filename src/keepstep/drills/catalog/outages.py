"""What the drills share in which the storage of a run is away for two saves."""

from typing import Any

from keepstep.drills.node_acts import Assemble, End, Reach, Release, hold
from keepstep.drills.scenario import Act, Scale
from keepstep.drills.storage_acts import Happen, Mishap


def moments_out(scale: Scale) -> tuple[int, int]:
    """The steps after which it goes, and comes back."""
    return scale.kill_step - 1, scale.kill_step + scale.save_every + 1


def outage(
    scale: Scale, goes: Mishap, comes: Mishap, settings: tuple[tuple[str, Any], ...] = ()
) -> tuple[Act, ...]:
    """Two ranks on one node train on meanwhile."""
    gone, back = moments_out(scale)
    return (
        Assemble(
            count=1,
            min_nodes=1,
            workers_per_node=2,
            failpoints=f"{hold(gone)};{hold(back)}",
            settings=settings,
            worlds=(2,),
        ),
        Reach("step.after", gone),
        Happen(goes),
        Release(),
        Reach("step.after", back),
        Happen(comes),
        Release(),
        End(),
    )
