"""A soak as a drill: it is performed, recorded, judged and replayed like any other (D18)."""

from keepstep.drills.scenario import Drill
from keepstep.drills.soak.campaign import SAVE_EVERY, Campaign

NAME = "soak"


def soak(*, minutes: float, faults: int) -> Drill:
    """Until one of the limits is reached. Which faults come is the seed's business."""
    return Drill(
        name=NAME,
        family="D18",
        description=f"One job under {faults} faults, or as many as fit into {minutes:g} min.",
        strategy="ddp",
        acts=(Campaign(faults, minutes),),
        judges=(
            "endings",
            "launchers_ended",
            "nothing_lost_but_damage",
            "never_back",
            "intact",
            "damage_was_named",
            "restored_exactly_where_known",
            "same_bits",
            "same_order",
            "all_kept",
            "nothing_left_over",
            "stock_reads_it",
            "failed_saves_are_survived",
        ),
        is_open_ended=True,
        settings=(
            ("train.steps", 1_000_000),  # no limit
            ("train.evaluate_every", 0),
            ("optim.decay_steps", 10_000),
            ("checkpoint.every", SAVE_EVERY),
            ("checkpoint.keep", "last=4"),
            ("checkpoint.failed_saves_allowed", 100),
            ("checkpoint.timeout_seconds", 10),
            ("storage.retry_seconds", 10),
            ("watchdog.floor_seconds", 6),
            ("watchdog.unlearned_seconds", 60),
            ("parallel.timeout_seconds", 30),
        ),
    )
