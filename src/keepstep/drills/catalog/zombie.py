"""A job that was taken for dead goes on (D9)."""

from keepstep.drills.catalog.panels import COMPARED
from keepstep.drills.scenario import Drill, Ending, Leg, Scale, Thaw


def zombie(scale: Scale) -> tuple[Drill, ...]:
    """Stopped on both sides of its check for a successor."""
    return (
        _zombie(scale, "zombie", "publish.middle", "right before it creates the manifest"),
        _zombie(scale, "zombie-early", "publish.before", "before it looks for a successor"),
    )


def _zombie(scale: Scale, name: str, site: str, moment: str) -> Drill:
    frozen = Leg(2, f"{site}=stop@rank:0@step:{scale.kill_step}", ending=Ending.STOPPED)
    return Drill(
        name=name,
        family="D9",
        description=f"A job is stopped {moment}, a successor does its work, then the first goes "
        "on: its late commit does not count.",
        strategy="ddp",
        acts=(frozen, Leg(2), Thaw(), Leg(2)),
        judges=("endings", "late_commit_is_void", "last_resume_is_newest", *COMPARED),
    )
