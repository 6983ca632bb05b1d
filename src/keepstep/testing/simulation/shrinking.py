"""Making a history that fails as small as it can be."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from keepstep.testing.simulation.plan import Plan

_MOST_RUNS = 2000
_SCHEDULES = 8


def shrink(plan: Plan, violation_of: Callable[[Plan], str | None]) -> Plan:
    """The smallest plan found that fails in the same way.

    Args:
        violation_of: Runs a plan; the first thing that must not be, if there is any.
    """
    wanted = _kind(violation_of(plan))
    runs, is_smaller = 0, True
    while is_smaller:
        is_smaller = False
        for candidate in _reordered(_smaller(plan)):
            runs += 1
            if runs > _MOST_RUNS:
                return plan
            if _kind(violation_of(candidate)) == wanted:
                plan, is_smaller = candidate, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with less in them, those with much less first."""
    for at in range(len(plan.events)):
        yield replace(plan, events=plan.events[:at] + plan.events[at + 1 :])
    for saves in sorted({1, plan.saves // 2, plan.saves - 1}):
        if 0 < saves < plan.saves:
            yield replace(plan, saves=saves)
    if plan.world_size > 1:
        yield replace(plan, world_size=plan.world_size - 1)
    if plan.operations_per_switch < _SELDOM:
        yield replace(plan, operations_per_switch=_SELDOM)


_SELDOM = 1e6
"""Actors then change where they wait, and nowhere else."""


def _reordered(plans: Iterator[Plan]) -> Iterator[Plan]:
    """Each in several orders: with less in it, what happens is not what happened."""
    for plan in plans:
        for schedule in range(_SCHEDULES):
            yield replace(plan, schedule=schedule)


def _kind(violation: str | None) -> str | None:
    return violation.partition(":")[0] if violation else None
