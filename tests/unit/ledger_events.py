"""Ledgers of runs that never were: events as sessions write them."""

from collections.abc import Iterable, Sequence
from typing import Any

Event = dict[str, Any]

SAMPLES_PER_STEP = 8


def life(
    generation: int,
    *,
    began: float,
    first_step: int = 1,
    last_step: int,
    step_seconds: float = 1.0,
    ranks: int = 2,
    start_seconds: float = 4.0,
    restore_seconds: float = 1.0,
    **begun: Any,
) -> list[Event]:
    """A start at ``began``, then steps; it breaks off with the last of them."""
    loading = began + start_seconds
    ready = loading + restore_seconds
    events: list[Event] = []
    for rank in range(ranks):
        events += [
            {
                "event": "generation",
                "step": first_step - 1,
                "world_size": ranks,
                "restart_count": generation - 1,
                "cause": None,
                **begun,
                "time": ready - 0.01,
                "generation": generation,
                "rank": rank,
            },
            {
                "event": "start",
                "opened": loading - 1.0,
                "loading": loading,
                "before": {"process": [began, ready]},
                "time": ready,
                "generation": generation,
                "rank": rank,
            },
        ]
    events += [
        event(
            "step",
            generation,
            0,
            ready + number * step_seconds,
            step=step,
            samples=step * SAMPLES_PER_STEP,
            metrics={"loss": 4.0 / step},
        )
        for number, step in enumerate(range(first_step, last_step + 1), start=1)
    ]
    return events


def event(what: str, generation: int, rank: int, time: float, /, **fields: Any) -> Event:
    return {"event": what, **fields, "time": time, "generation": generation, "rank": rank}


def on_all(ranks: int, what: str, generation: int, time: float, **fields: Any) -> list[Event]:
    """The same event on each rank."""
    return [event(what, generation, rank, time, **fields) for rank in range(ranks)]


def in_order(*parts: Iterable[Event]) -> Sequence[Event]:
    """Each rank's in the order of time."""
    return sorted((each for part in parts for each in part), key=lambda each: each["time"])
