"""An S3 server refuses, loses and delays (D10)."""

from keepstep.commit.layout import MANIFEST, STEPS
from keepstep.drills.catalog.nodes import GONE_ON, drill
from keepstep.drills.catalog.outages import moments_out, outage
from keepstep.drills.catalog.panels import UNINTERRUPTED
from keepstep.drills.scenario import Drill, Leg, Scale
from keepstep.drills.storage_acts import Distort, Distortion, Mishap, Serve

_NEEDS = ("s3-server",)
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
    return drill(
        f"s3-{distortion}",
        "D10",
        f"{which} of step {step} {what}. It is committed, like all others.",
        Serve(),
        Distort(distortion, _of(step), times),
        Leg(2),
        judges=(*_PASSED, *UNINTERRUPTED),
        needs=_NEEDS,
    )


def _unanswered() -> Drill:
    return drill(
        "s3-unanswered",
        "D10",
        "The first manifest is created, and the reply lost, twice: the second one says that there "
        "is such an object. The commit is the job's own, and counts.",
        Serve(),
        Distort(Distortion.UNANSWERED, MANIFEST, 2),
        Leg(2),
        judges=(*_PASSED, *UNINTERRUPTED),
        needs=_NEEDS,
    )


def _expired(scale: Scale) -> Drill:
    step = scale.kill_step
    return drill(
        "s3-expired",
        "D10",
        f"Uploads of step {step} are refused: the credentials are too old. That save fails; "
        "training goes on, and the next save, with new ones, is committed.",
        Serve(),
        Distort(Distortion.EXPIRED, _of(step)),
        Leg(2),
        judges=(
            *("endings", "undisturbed", "requests_were_distorted", "failed_everywhere"),
            *UNINTERRUPTED,
        ),
        needs=_NEEDS,
    )


def _down(scale: Scale) -> Drill:
    lost, back = moments_out(scale)
    return drill(
        "s3-down",
        "D10",
        f"The server is killed after step {lost}, and started again after step {back}. The saves "
        "in between fail; training goes on, and what it noted meanwhile is not lost.",
        Serve(),
        *outage(
            scale,
            Mishap.KILL_SERVER,
            Mishap.START_SERVER,
            settings=(("storage.retry_seconds", 3),),
        ),
        judges=("undisturbed", "failed_everywhere", *GONE_ON),
        needs=_NEEDS,
    )


def _of(step: int) -> str:
    return f"{STEPS}{step:012}-"
