"""The account of a run as a JSON document."""

from collections.abc import Sequence
from typing import Any

from keepstep.observability.goodput import Account, Restart, account, restarts, save_costs
from keepstep.observability.timeline import Episode


def account_document(episodes: Sequence[Episode], *, price: float | None = None) -> dict[str, Any]:
    """Everything ``keepstep report`` knows. Seconds; ``price`` is that of a process-hour."""
    whole = account(episodes)
    saves = save_costs(episodes)
    return {
        "generations": len(episodes),
        "wall_seconds": round(whole.wall_seconds, 3),
        "process_seconds": round(whole.process_seconds, 3),
        "goodput": round(whole.goodput, 4),
        "ettr": round(whole.ettr, 4),
        "causes": _causes(whole, price),
        "saves": saves
        and {
            "count": saves.count,
            "stall_seconds": round(saves.stall_seconds, 4),
            "p95_seconds": round(saves.slowest_seconds, 4),
        },
        "restarts": [_restart(restart, price) for restart in restarts(episodes)],
    }


def _causes(whole: Account, price: float | None) -> dict[str, dict[str, float]]:
    return {
        cause.value: {
            "process_seconds": round(seconds, 3),
            "part": round(whole.part(cause), 5),
            **({} if price is None else {"cost": round(seconds / 3600 * price, 4)}),
        }
        for cause, seconds in whole.by_cause.items()
    }


def _restart(restart: Restart, price: float | None) -> dict[str, Any]:
    return {
        "generation": restart.generation,
        "time": round(restart.at, 3),
        "cause": restart.cause,
        "was_announced": restart.was_announced,
        "world_size": restart.world_size,
        "reached_step": restart.reached_step,
        "resumed_step": restart.resumed_step,
        "lost_steps": restart.lost_steps,
        "lost_samples": restart.lost_samples,
        "recovery_seconds": round(restart.recovery_seconds, 3),
        "seconds": round(restart.seconds, 3),
        "seconds_by_cause": {
            cause.value: round(seconds, 3) for cause, seconds in restart.by_cause.items()
        },
        **({} if price is None else {"cost": round(restart.cost(price), 4)}),
    }
