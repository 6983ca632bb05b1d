"""The job dies in mid-save and is started again on another number of ranks (D14)."""

from collections.abc import Mapping
from dataclasses import replace

from keepstep.drills.catalog.panels import RESCALED
from keepstep.drills.catalog.victims import victim
from keepstep.drills.scenario import Drill, Ending, Leg, Scale

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

_EXACT = (*RESCALED, "same_bits")
_FAST_PANEL = (*RESCALED, "close_losses")

_SITES = ("write.middle", "publish.middle", "arrive.before", "write.before")
_EIGHTHS = (2, 4, 5, 7)
"""In which save each job but the last dies, of eight."""


def rescale(scale: Scale) -> tuple[Drill, ...]:
    """Up and down, on each strategy."""
    strategies = ("ddp", "fsdp")
    return (
        *(_rescale(scale, f"rescale-{s}", s, (4, 2, 3, 1, 5)) for s in strategies),
        _rescale(scale, "rescale-hsdp", "hsdp", (4, 2, 6), settings=_HSDP),
        *(_rescale_fast(scale, f"rescale-fast-{s}", s) for s in strategies),
        _rescale(scale, "rescale-down-ddp", "ddp", (2, 1)),
        _rescale(scale, "rescale-up-ddp", "ddp", (1, 2)),
        _rescale_across_epochs(scale),
    )


def _rescale(
    scale: Scale,
    name: str,
    strategy: str,
    worlds: tuple[int, ...],
    *,
    settings: Mapping[str, object] | None = None,
) -> Drill:
    moments = (scale.save(max(1, eighth * scale.num_saves // 8)) for eighth in _EIGHTHS)
    killed = [
        Leg(
            world_size,
            f"{site}=kill@rank:{victim(site, world_size)}@step:{step}",
            ending=Ending.KILLED,
        )
        for world_size, site, step in zip(worlds[:-1], _SITES, moments, strict=False)
    ]
    return Drill(
        name=name,
        family="D14",
        description="The job dies in mid-save and is started again on another number of ranks, "
        f"within one epoch: {' -> '.join(map(str, worlds))}. Not a bit differs from a run on 2.",
        strategy=strategy,
        acts=(*killed, Leg(worlds[-1])),
        judges=_EXACT,
        settings=tuple((settings or {}).items()),
    )


def _rescale_fast(scale: Scale, name: str, strategy: str) -> Drill:
    drill = _rescale(scale, name, strategy, (4, 2, 3, 1), settings=_FAST)
    return replace(
        drill,
        description="As rescale, with numerics = fast and no dropout: 4 -> 2 -> 3 -> 1. Losses "
        "agree up to rounding.",
        judges=_FAST_PANEL,
    )


def _rescale_across_epochs(scale: Scale) -> Drill:
    return replace(
        _rescale(scale, "rescale-epoch", "ddp", (2, 3, 1), settings=_DIGITS),
        description="The job dies in mid-save and is started again on another number of ranks, "
        "across the end of an epoch: 2 -> 3 -> 1.",
        samples_per_epoch=_DIGITS_SAMPLES,
        needs=("module:sklearn",),
    )
