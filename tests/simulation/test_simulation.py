"""The commit protocol's own code, crashed at every operation, and under whatever seeds draw."""

import pytest

from keepstep.testing.simulation.command import main
from keepstep.testing.simulation.exploring import crashes_of, explore, quiet
from keepstep.testing.simulation.history import History, Outcome
from keepstep.testing.simulation.naming import name_of, plan_of
from keepstep.testing.simulation.plan import Kind, draw_plan
from keepstep.testing.simulation.shrinking import shrink


@pytest.mark.parametrize("is_disk", [True, False], ids=["directory", "object store"])
def test_a_crash_at_any_operation_is_recovered_from(is_disk: bool) -> None:
    base = quiet(0, is_disk=is_disk, world_size=2, saves=1)
    failed = {
        name_of(plan): outcome.violations[0]
        for plan in crashes_of(base)
        if (outcome := History(plan).run()).violations
    }
    assert failed == {}


def test_nothing_is_found_in_what_seeds_draw_and_every_crash_point_is_hit() -> None:
    findings = explore(0, 4000)
    assert findings.failures == {}
    assert findings.missed == []
    assert findings.saves >= 4000


@pytest.mark.long
def test_nothing_is_found_in_a_hundred_thousand_saves() -> None:
    findings = explore(1_000_000, 100_000, processes=2)
    assert findings.failures == {}
    assert findings.missed == []
    assert all(findings.happened[kind] for kind in Kind)


def test_a_plan_gives_one_history_and_another_plan_another() -> None:
    traces = [run("17").trace, run("17").trace, run("18").trace]
    assert traces[0] == traces[1] != traces[2]


def test_a_plan_is_found_by_its_name() -> None:
    for name in ("17", "17:also=kill@57#0", "17:saves=3,switch=1e+06,events=stop-job@9#4"):
        assert name_of(plan_of(name)) == name
    assert plan_of("17") == draw_plan(17)


def test_what_fails_is_shrunk_to_what_makes_it_fail() -> None:
    plan = plan_of("17:saves=9,events=read@20#1+kill@300#0+pin@400#3")

    def violation_of(plan: object) -> str | None:
        return "I1: killed" if any(e.kind is Kind.KILL for e in plan.events) else None  # type: ignore[attr-defined]

    assert name_of(shrink(plan, violation_of)).endswith("events=kill@300#0")
    assert shrink(plan, violation_of).saves == 1


def test_the_command_prints_figures_and_replays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--saves", "50", "--processes", "1"]) == 0
    assert "crash points" in capsys.readouterr().out
    assert main(["--replay", "17"]) == 0
    assert "manifest.json" in capsys.readouterr().out


def run(name: str) -> Outcome:
    return History(plan_of(name), is_traced=True).run()
