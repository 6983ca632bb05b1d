"""A rank dies at each of the crash sites; torchrun restarts the job (D1 to D3)."""

from dataclasses import replace

from keepstep.drills.catalog.panels import SAME_WORLD
from keepstep.drills.catalog.victims import CRASH_SITES, victim
from keepstep.drills.scenario import Drill, Leg, Scale


def kills(scale: Scale) -> tuple[Drill, ...]:
    """At every site; and in mid-save with saves that hold training up, and in fast mode."""
    strategies = ("ddp", "fsdp")
    return (
        *(_kill(scale, site, strategy) for strategy in strategies for site in CRASH_SITES),
        *(_kill_in_sync(scale, strategy) for strategy in strategies),
        *(_kill_fast(scale, strategy) for strategy in strategies),
    )


def _kill(scale: Scale, site: str, strategy: str) -> Drill:
    rank, step = victim(site), scale.kill_step
    rule = f"{site}=kill@rank:{rank}@step:{step}"
    moment, deaths = f"at {site} of step {step}", 1
    if site.startswith("load."):  # a load follows only upon another death
        rule = f"write.middle=kill@rank:{rank}@step:{step};{site}=kill@rank:{rank}@restart:1"
        moment, deaths = f"in mid-save, and at {site} of the restart", 2
    return Drill(
        name=f"kill-{site}-{strategy}",
        family=_family(site),
        description=f"Rank {rank} dies {moment}; torchrun restarts the job, which ends as if "
        "nothing had happened.",
        strategy=strategy,
        acts=(Leg(2, rule, max_restarts=deaths),),
        judges=SAME_WORLD,
    )


def _kill_in_sync(scale: Scale, strategy: str) -> Drill:
    drill = _kill(scale, "write.middle", strategy)
    return replace(
        drill,
        name=f"kill-write.middle-sync-{strategy}",
        description=f"As {drill.name}, with training held up until a step is committed.",
        settings=(("checkpoint.mode", "sync"),),
    )


def _kill_fast(scale: Scale, strategy: str) -> Drill:
    drill = _kill(scale, "write.middle", strategy)
    return replace(
        drill,
        name=f"kill-write.middle-fast-{strategy}",
        description=f"As {drill.name}, with numerics = fast.",
        settings=(("train.numerics", "fast"),),
    )


def _family(site: str) -> str:
    if site == "arrive.after":  # all shards are there, nothing is committed
        return "D3"
    return "D2" if site.startswith("publish.") else "D1"
