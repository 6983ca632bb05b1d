"""A rank dies while a save hangs in the background of training (D1)."""

from keepstep.drills.catalog.panels import SAME_WORLD
from keepstep.drills.scenario import Drill, Leg, Scale


def in_flight(scale: Scale) -> tuple[Drill, ...]:
    """In both modes that save in the background."""
    return tuple(
        _kill_in_flight(scale, mode, strategy)
        for strategy in ("ddp", "fsdp")
        for mode in ("async", "overlap")
    )


def _kill_in_flight(scale: Scale, mode: str, strategy: str) -> Drill:
    step = scale.kill_step
    later = step + max(1, min(2, scale.save_every - 1))
    slow = f"write.middle=sleep:60@step:{step}"
    return Drill(
        name=f"kill-in-flight-{mode}-{strategy}",
        family="D1",
        description=f"The save of step {step} hangs in the background of training; after step "
        f"{later} rank 1 dies. The save before it is what the job goes on from.",
        strategy=strategy,
        acts=(Leg(2, f"{slow};step.after=kill@rank:1@step:{later}", max_restarts=1),),
        judges=SAME_WORLD,
        settings=(("checkpoint.mode", mode),),
    )
