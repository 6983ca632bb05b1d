"""One rank is slow (D16)."""

from keepstep.drills.catalog.panels import UNINTERRUPTED
from keepstep.drills.scenario import Drill, Leg, Scale

_SLOW_SECONDS = 6


def stragglers(scale: Scale) -> tuple[Drill, ...]:
    """As slow as is put up with, and slower."""
    return (_waited_for(scale), _given_up(scale))


def _waited_for(scale: Scale) -> Drill:
    return _straggler(
        scale,
        "straggler-waited-for",
        f"Rank 1 takes {_SLOW_SECONDS} s to write its part of step {scale.kill_step}. The others "
        "wait for it; the step is committed.",
        "every_save_committed",
        patience_seconds=60,
    )


def _given_up(scale: Scale) -> Drill:
    return _straggler(
        scale,
        "straggler-given-up",
        f"Rank 1 takes {_SLOW_SECONDS} s to write its part of step {scale.kill_step}, and is "
        "given 2 s. The save fails on all ranks, rank 1 included; training goes on.",
        "failed_everywhere",
        patience_seconds=2,
    )


def _straggler(
    scale: Scale, name: str, description: str, judge: str, *, patience_seconds: int
) -> Drill:
    slow = f"write.middle=sleep:{_SLOW_SECONDS}@rank:1@step:{scale.kill_step}"
    return Drill(
        name=name,
        family="D16",
        description=description,
        strategy="ddp",
        acts=(Leg(2, slow),),
        judges=("endings", "undisturbed", judge, *UNINTERRUPTED),
        settings=(("checkpoint.deadline_seconds", patience_seconds),),
    )
