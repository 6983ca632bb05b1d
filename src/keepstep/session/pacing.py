"""When the next save is due."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from keepstep.config import Interval
from keepstep.observability.intervals import optimal_interval

logger = logging.getLogger("keepstep.session")

_PRIOR_SECONDS = 4 * 3600.0
"""Time between failures to reckon with before any was seen; weighs as much as one failure."""

_SHORTEST_SECONDS = 10.0
_LONGEST_SECONDS = 1800.0
_NEWS = 1.25
"""A computed interval that changed by this factor is logged."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Failures:
    """What a run has been through before this generation."""

    count: int = 0
    seconds: float = 0.0
    """Time under way."""


@dataclass(frozen=True, slots=True)
class SaveCost:
    """What one save cost this rank, in seconds."""

    blocked_seconds: float
    """That training was held up."""
    total_seconds: float
    """Until it was committed."""


class Pace(Protocol):
    """Decides on one rank; where time matters the coordinator's word goes."""

    @property
    def steps(self) -> int | None:
        """Between two saves, if it goes by steps."""
        ...

    @property
    def seconds(self) -> float | None:
        """From one save to the next, if it goes by time; may change."""
        ...

    def is_due(self, step: int) -> bool:
        """Whether to save at a step, which must be asked once per step."""
        ...

    def began(self) -> None:
        """A save begins."""
        ...

    def ended(self, cost: SaveCost) -> None:
        """A save was committed."""
        ...

    def failed(self) -> None:
        """A save was not."""
        ...


def pace_of(interval: Interval, failures: Callable[[], Failures]) -> Pace:
    """The pace that an interval stands for.

    Args:
        failures: Asked once, if failures matter.
    """
    if interval.steps is not None:
        return StepPace(interval.steps)
    if interval.seconds is not None:
        return TimePace(interval.seconds)
    return AutoPace(failures())


class StepPace:
    """Every so many steps."""

    seconds = None

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def is_due(self, step: int) -> bool:
        return step % self.steps == 0

    def began(self) -> None:
        pass

    def ended(self, cost: SaveCost) -> None:
        pass

    def failed(self) -> None:
        pass


class TimePace:
    """Every so many seconds, from the beginning of one save to that of the next."""

    steps = None

    def __init__(self, seconds: float, *, clock: Clock = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._began_at = clock()

    def is_due(self, step: int) -> bool:  # noqa: ARG002  # not by the step
        return self._clock() - self._began_at >= self.seconds

    def began(self) -> None:
        self._began_at = self._clock()

    def ended(self, cost: SaveCost) -> None:
        pass

    def failed(self) -> None:
        pass


class AutoPace(TimePace):
    """As often as loses the least time, by what saves cost here and how often this run fails.

    The first save is due after the shortest interval, to learn its cost.
    """

    def __init__(self, failures: Failures, *, clock: Clock = time.monotonic) -> None:
        super().__init__(_SHORTEST_SECONDS, clock=clock)
        self._failures = failures
        self._started_at = clock()
        self._logged_seconds = 0.0

    @property
    def mtbf_seconds(self) -> float:
        """Mean time between failures: what was seen, and the prior as one failure more."""
        seconds = self._failures.seconds + self._clock() - self._started_at
        return (_PRIOR_SECONDS + seconds) / (1 + self._failures.count)

    def ended(self, cost: SaveCost) -> None:
        best = optimal_interval(cost.blocked_seconds, self.mtbf_seconds)
        # The next save must not have to wait for this one, which also slows training down a little.
        floor = max(_SHORTEST_SECONDS, 2 * cost.total_seconds)
        ceiling = max(_LONGEST_SECONDS, floor)
        self.seconds = min(max(best, floor), ceiling)
        self._log(cost, best, floor)

    def failed(self) -> None:
        # An outage at the start must not use up the allowed failures within minutes.
        self.seconds = min(2 * self.seconds, _LONGEST_SECONDS)

    def _log(self, cost: SaveCost, best: float, floor: float) -> None:
        if 1 / _NEWS < self.seconds / (self._logged_seconds or math.inf) < _NEWS:
            return
        self._logged_seconds = self.seconds
        binding = "Young/Daly" if self.seconds == best else "floor" if best < floor else "ceiling"
        logger.info(
            "saving every %.0f s, by the %s: a save holds training up for %.3f s and is committed "
            "after %.1f s; a failure is expected every %.1f h (%d seen); optimum %.0f s",
            self.seconds,
            binding,
            cost.blocked_seconds,
            cost.total_seconds,
            self.mtbf_seconds / 3600,
            self._failures.count,
            best,
        )
