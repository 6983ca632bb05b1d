"""An S3 server refuses, loses and delays (D10)."""

from keepstep.commit.layout import MANIFEST, STEPS
from keepstep.drills.catalog.nodes import GONE_ON
from keepstep.drills.catalog.panels import UNINTERRUPTED
from keepstep.drills.node_acts import Assemble, End, Reach, Release, hold
from keepstep.drills.scenario import Act, Drill, Leg, Scale
from keepstep.drills.storage_acts import Distort, Distortion, Happen, Mishap, Serve

_PASSED = ("endings", "undisturbed", "requests_were_distorted", "every_save_committed")


def object_storage(scale: Scale) -> tuple[Drill, ...]:
    """What a request survives; what only training survives; a server that dies."""
    return (
        _weathered(scale, Distortion.SLOW_DOWN, 12, "are refused with 503 SlowDown"),
        _weathered(scale, Distortion.TORN, 3, "break off in the middle"),
        _weathered(scale, Distortion.CRAWL, None, "pass at 200 kB/s"),
        _unanswered(),
        _expired(scale),
        _down(scale),
    )


def _weathered(scale: Scale, distortion: Distortion, times: int | None, what: str) -> Drill:
    step = scale.kill_step
    which = f"{times} uploads" if times else "All uploads"
    return _drill(
        f"s3-{distortion}",
        f"{which} of step {step} {what}. It is committed, like all others.",
        Serve(),
        Distort(distortion, _of(step), times),
        Leg(2),
        judges=(*_PASSED, *UNINTERRUPTED),
    )


def _unanswered() -> Drill:
    return _drill(
        "s3-unanswered",
        "The first manifest is created, and the reply lost, twice: the second one says that there "
        "is such an object. The commit is the job's own, and counts.",
        Serve(),
        Distort(Distortion.UNANSWERED, MANIFEST, 2),
        Leg(2),
        judges=(*_PASSED, *UNINTERRUPTED),
    )


def _expired(scale: Scale) -> Drill:
    step = scale.kill_step
    return _drill(
        "s3-expired",
        f"Uploads of step {step} are refused: the credentials are too old. That save fails; "
        "training goes on, and the next save, with new ones, is committed.",
        Serve(),
        Distort(Distortion.EXPIRED, _of(step)),
        Leg(2),
        judges=(
            *("endings", "undisturbed", "requests_were_distorted", "failed_everywhere"),
            *UNINTERRUPTED,
        ),
    )


def _down(scale: Scale) -> Drill:
    lost, back = scale.kill_step - 1, scale.kill_step + scale.save_every + 1
    return _drill(
        "s3-down",
        f"The server is killed after step {lost}, and started again after step {back}. The saves "
        "in between fail; training goes on, and what it noted meanwhile is not lost.",
        Serve(),
        Assemble(
            count=1,
            min_nodes=1,
            workers_per_node=2,
            failpoints=f"{hold(lost)};{hold(back)}",
            settings=(("storage.retry_seconds", 3),),
            worlds=(2,),
        ),
        Reach("step.after", lost),
        Happen(Mishap.KILL_SERVER),
        Release(),
        Reach("step.after", back),
        Happen(Mishap.START_SERVER),
        Release(),
        End(),
        judges=("undisturbed", "failed_everywhere", *GONE_ON),
    )


def _of(step: int) -> str:
    return f"{STEPS}{step:012}-"


def _drill(name: str, description: str, *acts: Act, judges: tuple[str, ...]) -> Drill:
    return Drill(
        name=name,
        family="D10",
        description=description,
        strategy="ddp",
        acts=acts,
        judges=judges,
        needs=("s3-server",),
    )
