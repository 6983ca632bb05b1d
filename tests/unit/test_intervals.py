"""How often to save, against what is published."""

import json
import math

import pytest

from keepstep.cli.main import main
from keepstep.observability.intervals import (
    availability_interval,
    expected_waste,
    optimal_interval,
    unannounced,
    young_interval,
)

HOUR = 3600.0


def test_young_by_the_numbers_of_a_large_run() -> None:
    """419 unexpected interruptions in 54 days: "The Llama 3 Herd of Models", arXiv 2407.21783,
    section 3.3.4. With a stall of 5 s, sqrt(2 * 11135 s * 5 s) is 334 s.
    """
    failure_seconds = 54 * 24 * HOUR / 419
    assert failure_seconds == pytest.approx(3.09 * HOUR, rel=0.01)
    assert young_interval(5.0, failure_seconds) == pytest.approx(333.7, abs=0.1)


@pytest.mark.parametrize("stall", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("failure", [1 * HOUR, 7.9 * HOUR, 1000 * HOUR])
@pytest.mark.parametrize("recovery", [10.0, 900.0])
def test_the_availability_optimum_loses_least(
    stall: float, failure: float, recovery: float
) -> None:
    """The closed form of arXiv 2410.18124 is where its availability has its maximum."""

    def lost(interval: float) -> float:
        waste = expected_waste(
            interval,
            stall_seconds=stall,
            failure_seconds=failure,
            recovery_seconds=recovery,
        )
        availability = (interval - stall) / (
            interval * (1 + recovery / failure + interval / (2 * failure))
        )
        assert waste.total == pytest.approx(1 - availability)
        return waste.total

    best = availability_interval(stall, failure, recovery)
    assert lost(best) < min(lost(0.99 * best), lost(1.01 * best))


def test_the_availability_optimum_tends_to_young() -> None:
    """ "For T_s << T_r and T_r << T_f, availability-optimal checkpoint interval is asymptotically
    same as lost-time-optimal": abstract of arXiv 2410.18124."""
    stall, recovery, failure = 1e-3, 1.0, 1e6
    ratio = availability_interval(stall, failure, recovery) / young_interval(stall, failure)
    assert ratio == pytest.approx(1.0, abs=1e-4)


def test_daly_tends_to_young_and_leaves_out_the_save_itself() -> None:
    cost, failure = 1.0, 1e8
    young = young_interval(cost, failure)
    assert optimal_interval(cost, failure) == pytest.approx(young, rel=1e-3)
    assert optimal_interval(300.0, HOUR) < young_interval(300.0, HOUR)


def test_announced_failures_make_saves_rarer() -> None:
    assert unannounced(2 * HOUR, 0.8) == pytest.approx(10 * HOUR)
    assert young_interval(5.0, 2 * HOUR) == pytest.approx(268.3, abs=0.1)
    assert young_interval(5.0, unannounced(2 * HOUR, 0.8)) == pytest.approx(600.0)
    assert math.isinf(unannounced(HOUR, 1.0))


def test_the_plan_names_the_best_interval_and_what_others_lose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--stall", "5", "--mttf", "7200", "--recovery", "300", "--notice-fraction", "0.8"]
    assert main(["plan", *given, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["young_seconds"] == pytest.approx(600.0)
    assert document["best_seconds"] == pytest.approx(document["availability_seconds"])
    half, once, twice = (waste["total"] for waste in document["waste"])
    assert once < min(half, twice)
    assert main(["plan", *given]) == 0
    assert 'every = "' in capsys.readouterr().out


def test_the_best_interval_is_the_best_with_announced_failures_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--stall", "30", "--mttf", "7200", "--recovery", "1800", "--notice-fraction", "0.8"]
    assert main(["plan", *given, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best_seconds"]
    costs = {"stall_seconds": 30.0, "failure_seconds": 7200.0, "recovery_seconds": 1800.0}
    least = min(
        range(100, 5000), key=lambda s: expected_waste(s, **costs, notice_fraction=0.8).total
    )
    assert best == pytest.approx(least, abs=1)


def test_saves_are_not_planned_before_the_last_one_is_committed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--stall", "0.1", "--mttf", "600", "--recovery", "30", "--commit", "100"]
    assert main(["plan", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best_seconds"] == pytest.approx(120.0)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--stall", "5"], "--mttf and --recovery"),
        (["--stall", "0", "--mttf", "9", "--recovery", "1"], "--stall 0"),
        (["--stall", "1", "--mttf", "9", "--recovery", "1", "--notice-fraction", "1"], "less than"),
    ],
)
def test_a_plan_without_premises_says_what_is_missing(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 64
    assert named in capsys.readouterr().err
