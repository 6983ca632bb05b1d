"""A disk is full, fails, or turns read-only (D11)."""

from keepstep.drills.catalog.nodes import GONE_ON, RESUMED, drill
from keepstep.drills.catalog.outages import moments_out, outage
from keepstep.drills.catalog.panels import UNINTERRUPTED
from keepstep.drills.node_acts import Assemble, Commit, End, Join, Reach, Release, hold
from keepstep.drills.scenario import Drill, Ending, Leg, Scale
from keepstep.drills.storage_acts import Happen, Mishap, Mount

_NEEDS = ("disk",)


def disk(scale: Scale) -> tuple[Drill, ...]:
    """Of one rank, by crash sites; of the whole run, a real one."""
    return (
        _one_rank(scale, "disk-full-rank", "write.middle=raise:ENOSPC@rank:1", "has no space left"),
        _one_rank(scale, "disk-error-rank", "write.after=raise:EIO@rank:1", "cannot be synced"),
        _one_rank(scale, "disk-error-publish", "publish.middle=raise:EIO@rank:0", "fails at last"),
        _full(scale),
        _read_only(scale),
    )


def _one_rank(scale: Scale, name: str, rule: str, what: str) -> Drill:
    step = scale.kill_step
    whose = rule[-1]
    return drill(
        name,
        "D11",
        f"In the save of step {step} the disk of rank {whose} {what}. The save fails on all ranks; "
        "training goes on, and the next one is committed.",
        Leg(2, f"{rule}@step:{step}"),
        judges=("endings", "undisturbed", "failed_everywhere", *UNINTERRUPTED),
    )


def _full(scale: Scale) -> Drill:
    filled, freed = moments_out(scale)
    return drill(
        "disk-full",
        "D11",
        f"The disk of the run, a real file system, is full from step {filled} to step {freed}. "
        "Saves in between fail; training goes on, and later ones are committed.",
        Mount(),
        *outage(scale, Mishap.FILL, Mishap.FREE),
        judges=("undisturbed", "failed_everywhere", *GONE_ON),
        needs=_NEEDS,
    )


def _read_only(scale: Scale) -> Drill:
    step = scale.kill_step - 1
    return drill(
        "disk-read-only",
        "D11",
        f"After step {step} the file system finds an error in itself and turns read-only. One "
        "failed save is put up with; at the second the job ends. On the disk, mounted again, it "
        "goes on.",
        Mount(),
        Assemble(
            count=1,
            min_nodes=1,
            workers_per_node=2,
            failpoints=hold(step),
            settings=(("checkpoint.failed_saves_allowed", 1),),
            max_restarts=0,
            worlds=(2, 2),
        ),
        Reach("step.after", step),
        Commit(step - scale.save_every + 1),
        Happen(Mishap.FAIL),
        Release(),
        End((("node 0", Ending.TRANSIENT),)),
        Happen(Mishap.REPAIR),
        Join("node 0"),
        End(),
        judges=RESUMED,
        needs=_NEEDS,
    )
