"""The catalog of drills."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from keepstep.drills.scenario import (
    KILL_STEP,
    SAVE_EVERY,
    STEPS,
    DamageKind,
    Drill,
    Ending,
    Leg,
    Place,
    Spoil,
    Thaw,
)
from keepstep.errors import ConfigError
from keepstep.failpoints import FAILPOINTS

SMOKE = ("kill-write.middle-ddp", "rescale-down-ddp")

_FAST: dict[str, object] = {"train.numerics": "fast", "model.dropout": 0.0}
"""Fast mode where the number of ranks changes: dropout is drawn per rank, losses would differ."""

_HSDP: dict[str, object] = {"parallel.strategy": "hsdp", "parallel.shard_size": 2}

_DIGITS: dict[str, object] = {
    "task": "digits",
    "batch.global_size": 60,
    "batch.microbatch": 5,
    "model.width": 8,
}
"""A task whose epoch is short enough to be crossed."""
_DIGITS_SAMPLES = 1500


def catalog() -> tuple[Drill, ...]:
    """Every drill, in the order in which they are listed."""
    strategies = ("ddp", "fsdp")
    return (
        *(_kill(site, strategy) for strategy in strategies for site in _CRASH_RANKS),
        *(_kill_in_flight(mode, s) for s in strategies for mode in ("async", "overlap")),
        *(_kill_in_sync(s) for s in strategies),
        *(_kill_fast(s) for s in strategies),
        *(_rescale(f"rescale-{s}", s, (4, 2, 3, 1, 5)) for s in strategies),
        _rescale("rescale-hsdp", "hsdp", (4, 2, 6), settings=_HSDP),
        *(_rescale_fast(f"rescale-fast-{s}", s) for s in strategies),
        _rescale("rescale-down-ddp", "ddp", (2, 1)),
        _rescale_across_epochs(),
        *(_damage(kind) for kind in DamageKind),
        _damage_ancestor(),
        _damage_all(),
        _zombie("zombie", "publish.middle", "right before it creates the manifest"),
        _zombie("zombie-early", "publish.before", "before it looks for a successor"),
    )


def select(patterns: tuple[str, ...]) -> tuple[Drill, ...]:
    """The drills whose names match any of the patterns: ``smoke``, ``all``, names, wildcards.

    *Raises:* ``ConfigError`` for a pattern that matches nothing.
    """
    drills = catalog()
    wanted: set[str] = set()
    for pattern in patterns or ("smoke",):
        globs = {"smoke": SMOKE, "all": ("*",)}.get(pattern, (pattern,))
        matching = {d.name for d in drills for glob in globs if fnmatchcase(d.name, glob)}
        if not matching:
            raise ConfigError(f"no drill is called {pattern!r}: see `keepstep drill list`")
        wanted |= matching
    return tuple(drill for drill in drills if drill.name in wanted)


_COMPARED = ("intact", "same_order", "same_bits")
_SAME_WORLD = ("endings", "interrupted", "nothing_lost", *_COMPARED)
_RESCALED = (
    "endings",
    "interrupted",
    "nothing_lost",
    "intact",
    "same_order",
    "once_per_epoch",
    "hops_keep_state",
)
_OTHER_WORLD = (*_RESCALED, "same_bits")
_OTHER_WORLD_FAST = (*_RESCALED, "close_losses")

_COORDINATOR_SITES = ("arrive.after", "publish.before", "publish.middle", "publish.after")
_CRASH_RANKS = {site: 0 if site in _COORDINATOR_SITES else 1 for site in FAILPOINTS}
"""Who dies at a site: the coordinator where only it passes, else another rank."""


def _kill(site: str, strategy: str) -> Drill:
    rank = _CRASH_RANKS[site]
    rule = f"{site}=kill@rank:{rank}@step:{KILL_STEP}"
    moment = f"at {site} of step {KILL_STEP}"
    if site.startswith("load."):  # a load follows only upon another death
        rule = f"write.middle=kill@rank:{rank}@step:{KILL_STEP};{site}=kill@rank:{rank}@restart:1"
        moment = f"in mid-save, and at {site} of the restart"
    return Drill(
        name=f"kill-{site}-{strategy}",
        description=f"Rank {rank} dies {moment}; torchrun restarts the job, which ends as if "
        "nothing had happened.",
        strategy=strategy,
        acts=(Leg(2, rule, max_restarts=3),),
        judges=_SAME_WORLD,
    )


def _kill_in_flight(mode: str, strategy: str) -> Drill:
    slow = f"write.middle=sleep:60@step:{KILL_STEP}"
    return Drill(
        name=f"kill-in-flight-{mode}-{strategy}",
        description=f"The save of step {KILL_STEP} hangs in the background of training; two steps "
        "later rank 1 dies. The step before it is what the job goes on from.",
        strategy=strategy,
        acts=(Leg(2, f"{slow};step.after=kill@rank:1@step:{KILL_STEP + 2}", max_restarts=3),),
        judges=_SAME_WORLD,
        settings=(("checkpoint.mode", mode),),
    )


def _kill_in_sync(strategy: str) -> Drill:
    drill = _kill("write.middle", strategy)
    return replace(
        drill,
        name=f"kill-write.middle-sync-{strategy}",
        description=f"As {drill.name}, with training held up until a step is committed.",
        settings=(("checkpoint.mode", "sync"),),
    )


def _kill_fast(strategy: str) -> Drill:
    drill = _kill("write.middle", strategy)
    return replace(
        drill,
        name=f"kill-write.middle-fast-{strategy}",
        description=f"As {drill.name}, with numerics = fast.",
        settings=(("train.numerics", "fast"),),
    )


def _rescale(
    name: str,
    strategy: str,
    worlds: tuple[int, ...],
    *,
    settings: Mapping[str, object] | None = None,
) -> Drill:
    sites = ("write.middle", "publish.middle", "arrive.before", "write.before")
    killed = [
        Leg(
            world_size,
            f"{site}=kill@rank:{_victim(site, world_size)}@step:{step}",
            ending=Ending.KILLED,
        )
        for world_size, site, step in zip(worlds[:-1], sites, (10, 20, 25, 35), strict=False)
    ]
    return Drill(
        name=name,
        description="The job dies in mid-save and is started again on another number of ranks, "
        f"within one epoch: {' -> '.join(map(str, worlds))}. Not a bit differs from a run on 2.",
        strategy=strategy,
        acts=(*killed, Leg(worlds[-1])),
        judges=_OTHER_WORLD,
        settings=tuple((settings or {}).items()),
    )


def _rescale_fast(name: str, strategy: str) -> Drill:
    drill = _rescale(name, strategy, (4, 2, 3, 1), settings=_FAST)
    return replace(
        drill,
        description="As rescale, with numerics = fast and no dropout: 4 -> 2 -> 3 -> 1. Losses "
        "agree up to rounding.",
        judges=_OTHER_WORLD_FAST,
    )


def _rescale_across_epochs() -> Drill:
    drill = _rescale("rescale-epoch", "ddp", (2, 3, 1))
    return Drill(
        name=drill.name,
        description="The job dies in mid-save and is started again on another number of ranks, "
        "across the end of an epoch: 2 -> 3 -> 1.",
        strategy=drill.strategy,
        acts=drill.acts,
        judges=drill.judges,
        settings=tuple(_DIGITS.items()),
        samples_per_epoch=_DIGITS_SAMPLES,
        needs="sklearn",
    )


def _damage(kind: DamageKind) -> Drill:
    deeds = {
        DamageKind.FLIP: "a bit is flipped",
        DamageKind.ZERO: "a block is zeroed",
        DamageKind.TRUNCATE: "the end is cut off",
        DamageKind.DELETE: "all is deleted",
    }
    places = tuple(Place)
    return Drill(
        name=f"damage-{kind}",
        description=f"In the {len(places)} newest checkpoints {deeds[kind]}: of a shard, an index, "
        "a manifest, the stock metadata. Each is named and set aside; all ranks fall back to the "
        "same older one.",
        strategy="ddp",
        acts=(Spoil(kind, places), Leg(2)),
        judges=("endings", "damage_is_named", "fell_back", "objects_untouched", *_COMPARED),
        continues_reference=True,
    )


def _damage_ancestor() -> Drill:
    return Drill(
        name="damage-ancestor",
        description="A job dies, its successor dies before its first save, and the manifest that "
        "the successor resumed from is deleted. It is missed, named and set aside.",
        strategy="ddp",
        acts=(
            Leg(2, "write.middle=kill@rank:1@step:20", ending=Ending.KILLED),
            Leg(2, "step.after=kill@rank:1@step:18", ending=Ending.KILLED),
            Spoil(DamageKind.DELETE, (Place.MANIFEST,)),
            Leg(2),
        ),
        judges=("endings", "damage_is_named", "fell_back", "objects_untouched", *_COMPARED),
    )


def _damage_all() -> Drill:
    every_one = (Place.SHARD,) * (STEPS // SAVE_EVERY)
    refused = Leg(2, ending=Ending.DAMAGED)
    return Drill(
        name="damage-all",
        description="Every checkpoint is damaged. The job refuses to start, twice, and replaces "
        "nothing.",
        strategy="ddp",
        acts=(Spoil(DamageKind.FLIP, every_one), refused, refused),
        judges=("endings", "damage_is_named", "objects_untouched", "nothing_added"),
        continues_reference=True,
    )


def _zombie(name: str, site: str, moment: str) -> Drill:
    frozen = Leg(2, f"{site}=stop@rank:0@step:{KILL_STEP}", ending=Ending.STOPPED)
    return Drill(
        name=name,
        description=f"A job is stopped {moment}, a successor does its work, then the first goes "
        "on: its late commit does not count.",
        strategy="ddp",
        acts=(frozen, Leg(2), Thaw(), Leg(2)),
        judges=("endings", "late_commit_is_void", "last_resume_is_newest", *_COMPARED),
    )


def _victim(site: str, world_size: int) -> int:
    """The coordinator where only it passes, else the last rank."""
    return 0 if site in _COORDINATOR_SITES else world_size - 1
