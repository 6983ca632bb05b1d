"""When saves are due, and how often is best."""

import math

import pytest

from keepstep.config import parse_interval
from keepstep.observability.intervals import optimal_interval
from keepstep.session.pacing import (
    AutoPace,
    Failures,
    SaveCost,
    StepPace,
    TimePace,
    pace_of,
)

HOUR = 3600.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lost_fraction(interval: float, cost: float, mtbf: float) -> float:
    """Share of the time that is not work, in Daly's model with failures at random."""
    wall = mtbf * (math.exp((interval + cost) / mtbf) - 1)
    return 1 - interval / wall


@pytest.mark.parametrize("cost", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("mtbf", [600.0, HOUR, 24 * HOUR])
def test_no_other_interval_loses_less(cost: float, mtbf: float) -> None:
    best = optimal_interval(cost, mtbf)
    at_best = lost_fraction(best, cost, mtbf)
    # Daly's estimate is within half a percent of the true minimum of his model.
    others = [lost_fraction(best * factor / 100, cost, mtbf) for factor in range(20, 500)]
    assert at_best <= min(others) * 1.005


def test_young_s_first_order_is_the_limit_for_cheap_saves() -> None:
    assert optimal_interval(0.001, 10 * HOUR) == pytest.approx(
        math.sqrt(2 * 0.001 * 10 * HOUR), rel=1e-3
    )


def test_saves_that_cost_more_than_failures_leave_are_as_rare_as_failures() -> None:
    assert optimal_interval(100, 50) == 50


def test_steps_count_from_zero() -> None:
    pace = StepPace(3)
    assert [step for step in range(1, 10) if pace.is_due(step)] == [3, 6, 9]


def test_time_counts_from_the_beginning_of_the_last_save() -> None:
    clock = Clock()
    pace = TimePace(30, clock=clock)
    clock.now += 29
    assert not pace.is_due(1)
    clock.now += 1
    assert pace.is_due(2)
    pace.began()
    assert not pace.is_due(3)
    clock.now += 30
    assert pace.is_due(4)


def test_auto_first_learns_what_a_save_costs_here() -> None:
    clock = Clock()
    pace = AutoPace(Failures(), clock=clock)
    clock.now += 9.9
    assert not pace.is_due(1)
    clock.now += 0.2
    assert pace.is_due(2)
    pace.began()
    pace.ended(SaveCost(blocked_seconds=0.5, total_seconds=3))
    assert pace.seconds == pytest.approx(optimal_interval(0.5, 4 * HOUR + 10.1), rel=1e-6)


def test_auto_saves_more_often_the_more_often_a_run_fails() -> None:
    seconds = []
    for count in (0, 3, 30):
        pace = AutoPace(Failures(count, seconds=2 * HOUR), clock=Clock())
        assert pace.mtbf_seconds == pytest.approx(6 * HOUR / (1 + count))
        pace.ended(SaveCost(1.0, 2.0))
        seconds.append(pace.seconds)
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize(
    ("cost", "expected", "term"),
    [
        (SaveCost(0.0001, 1), 10, "floor"),
        (SaveCost(0.1, 100), 200, "floor"),
        (SaveCost(1000, 1000), 2000, "ceiling"),
        (SaveCost(500, 501), 1800, "ceiling"),
        (SaveCost(1, 3), None, "Young/Daly"),
    ],
)
def test_auto_is_clamped_and_says_what_binds(
    cost: SaveCost, expected: float | None, term: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="keepstep.session")
    pace = AutoPace(Failures(), clock=Clock())
    pace.ended(cost)
    if expected is not None:
        assert pace.seconds == expected
    (message,) = caplog.messages
    assert f"by the {term}:" in message
    pace.ended(cost)
    assert len(caplog.messages) == 1, "no news, no line"


def test_auto_is_an_interval_and_only_it_asks_for_failures() -> None:
    asked: list[int] = []

    def failures() -> Failures:
        asked.append(1)
        return Failures(2, 7200)

    assert isinstance(pace_of(parse_interval("50"), failures), StepPace)
    assert isinstance(pace_of(parse_interval("10min"), failures), TimePace)
    assert asked == []
    assert isinstance(pace_of(parse_interval("auto"), failures), AutoPace)
    assert asked == [1]
