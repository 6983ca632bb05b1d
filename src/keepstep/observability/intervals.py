"""How often to save: what is lost to saving, and to failures, for an interval between saves.

Symbols of the literature: *T_s* the time that a save holds training up, *T_f* the mean time to a
failure, *T_r* the time from a failure until training goes on, *T_c* the time between saves.
"""

import math
from dataclasses import dataclass


def young_interval(stall_seconds: float, failure_seconds: float) -> float:
    """``sqrt(2 T_f T_s)``: J. W. Young, "A first order approximation to the optimum checkpoint
    interval", Communications of the ACM 17(9), 1974."""
    return math.sqrt(2 * failure_seconds * stall_seconds)


def optimal_interval(cost_seconds: float, mtbf_seconds: float) -> float:
    """Seconds of work between saves that lose the least time to saving and to work done twice.

    The first order is :func:`young_interval`. The higher order used here: J. T. Daly, "A higher
    order estimate of the optimum checkpoint interval for restart dumps", Future Generation
    Computer Systems 22(3), 2006, equation 37.

    Args:
        cost_seconds: How long one save holds training up.
        mtbf_seconds: Mean time between failures.
    """
    if cost_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    ratio = cost_seconds / (2 * mtbf_seconds)
    first_order = young_interval(cost_seconds, mtbf_seconds)
    return first_order * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_seconds


def availability_interval(
    stall_seconds: float, failure_seconds: float, recovery_seconds: float
) -> float:
    """``T_s + sqrt(2 (T_f + T_r) T_s + T_s^2)``, from the beginning of a save to that of the next.

    N. R. Saxena, S. Hukerikar, M. Blaz, S. Raj, "Optimal Checkpoint Interval with Availability as
    an Objective Function", arXiv 2410.18124, 2024. It holds where a failure is noticed in much less
    time than passes between saves.
    """
    return stall_seconds + math.sqrt(
        2 * (failure_seconds + recovery_seconds) * stall_seconds + stall_seconds**2
    )


def unannounced(failure_seconds: float, notice_fraction: float) -> float:
    """Mean time to a failure that nobody announced: those announced lose no steps."""
    return failure_seconds / (1 - notice_fraction) if notice_fraction < 1 else math.inf


@dataclass(frozen=True, slots=True)
class Waste:
    """The part of all time that is lost, by what it is lost to."""

    interval_seconds: float
    stall: float
    """To saves that hold training up."""
    redo: float
    """To work done again: half an interval for each failure."""
    recovery: float
    """From a failure until training goes on."""

    @property
    def total(self) -> float:
        """One minus the availability."""
        return self.stall + self.redo + self.recovery


def expected_waste(
    interval_seconds: float,
    *,
    stall_seconds: float,
    failure_seconds: float,
    recovery_seconds: float,
    notice_fraction: float = 0.0,
) -> Waste:
    """What an interval loses: the model of which :func:`availability_interval` is the optimum.

    An interval brings ``T_c - T_s`` of work. It takes ``T_c``, and for each of the ``T_c / T_f``
    failures in it ``T_c / 2`` of work done again and ``T_r`` of recovery: the availability is
    ``(T_c - T_s) / (T_c (1 + T_r / T_f + T_c / (2 T_f)))``. It is good while ``T_c`` is small
    beside ``T_f``.

    Args:
        notice_fraction: Of the failures, those announced early enough to save: they cost a
            recovery, and no work done again.
    """
    redo = interval_seconds / (2 * unannounced(failure_seconds, notice_fraction))
    recovery = recovery_seconds / failure_seconds
    whole = 1 + redo + recovery
    stall = min(1.0, stall_seconds / interval_seconds)
    return Waste(interval_seconds, stall / whole, redo / whole, recovery / whole)
