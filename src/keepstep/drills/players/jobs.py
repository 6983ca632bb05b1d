"""Jobs from their start to their end, and one that is stopped and goes on later."""

from keepstep.drills.run import Job
from keepstep.drills.scenario import Ending, Leg, Thaw
from keepstep.drills.stage import Stage

_FROZEN = "frozen job"


def play_leg(stage: Stage, leg: Leg) -> None:
    """Run a job to its end, or until its ranks are stopped."""
    if leg.ending is Ending.STOPPED:
        job = stage.exits.enter_context(stage.start(leg))
        job.freeze()
        stage.held[_FROZEN] = job
        return
    with stage.start(leg) as job:
        stage.results.append(job.wait(leg.ending))


def play_thaw(stage: Stage, thaw: Thaw) -> None:
    """Let the stopped job go on to its end."""
    frozen: Job = stage.held.pop(_FROZEN)
    stage.note("continue", "all ranks", "of the stopped job")
    frozen.thaw()
    stage.results.append(frozen.wait(thaw.ending))
