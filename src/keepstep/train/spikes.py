"""A guard against losses that leap: go back to the last checkpoint, and leave out the data."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

_REMEMBERED = 50
_ENOUGH = 10
"""Losses before a leap can be told from the way training begins."""


class SpikeGuard:
    """Knows what is usual; tracked, so that a restart knows it too.

    Args:
        factor: A loss this many times the median of the last ones, or one that is not finite, is a
            spike.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._losses: deque[float] = deque(maxlen=_REMEMBERED)

    def explain(self, loss: float) -> str | None:
        """Take note of a loss; if it is a spike, why."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if len(self._losses) >= _ENOUGH:
            usual = median(self._losses)
            if loss > self._factor * usual:
                return f"the loss is {loss:.4g}, and {usual:.4g} is usual"
        self._losses.append(loss)
        return None

    def state_dict(self) -> dict[str, Sequence[float]]:
        """The last losses."""
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._losses = deque(state["losses"], maxlen=_REMEMBERED)
