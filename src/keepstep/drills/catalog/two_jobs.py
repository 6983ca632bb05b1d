"""Two jobs on one run directory (D17)."""

from keepstep.drills.catalog.nodes import drill
from keepstep.drills.catalog.panels import COMPARED, UNINTERRUPTED
from keepstep.drills.node_acts import hold, pace
from keepstep.drills.rivals import AtOnce, Rivals
from keepstep.drills.scenario import Drill, Leg, Scale


def two_jobs(scale: Scale) -> tuple[Drill, ...]:
    """One after the other, and at the same moment."""
    older, newer = scale.kill_step - 2, scale.kill_step - 1
    slow = pace(1, scale.kill_step)
    return (
        drill(
            "two-jobs",
            "D17",
            f"While a job is at step {older} another is started on its directory. It goes on from "
            "the newest commit; the first makes steps beside it, is fenced at its next save, and "
            "ends with 87.",
            Rivals(older=Leg(2, hold(older)), newer=Leg(2, hold(newer))),
            judges=("endings", "competed", *COMPARED),
        ),
        drill(
            "two-jobs-at-once",
            "D17",
            "Two jobs are started on one directory at the same moment. One does the work; the "
            "other ends with 87. There is one history.",
            AtOnce(Leg(2, slow)),
            judges=("endings", *UNINTERRUPTED),
        ),
    )
