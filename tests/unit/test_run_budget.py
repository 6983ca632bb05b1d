"""What an exit code asks for, and how often a job is tried again."""

import pytest

from keepstep.errors import ExitCode
from keepstep.launch.budget import LONGEST_PAUSE_SECONDS, Budget, Demand, demand_of


@pytest.mark.parametrize("code", [1, 42, 75, 88])
def test_what_may_pass_is_tried_again(code: int) -> None:
    assert demand_of(code, is_told=False, is_alone=True) is Demand.RESTART


@pytest.mark.parametrize("code", [64, 65, 66, 69, 70, 71, 77, 78, 87, 93])
def test_what_stays_as_it_is_ends_the_job(code: int) -> None:
    assert demand_of(code, is_told=False, is_alone=False) is Demand.STOP


@pytest.mark.parametrize("code", [85, 86])
@pytest.mark.parametrize(
    ("is_told", "is_alone", "demand"),
    [
        (True, False, Demand.LEAVE),
        (False, True, Demand.LEAVE),
        (True, True, Demand.LEAVE),
        (False, False, Demand.REJOIN),
    ],
)
def test_a_preempted_job_is_left_by_the_nodes_that_are_told(
    code: int, demand: Demand, *, is_told: bool, is_alone: bool
) -> None:
    assert demand_of(code, is_told=is_told, is_alone=is_alone) is demand


def test_every_exit_code_has_been_thought_of() -> None:
    demands = {code: demand_of(code, is_told=False, is_alone=False) for code in ExitCode}
    restarted = {code for code, demand in demands.items() if demand is Demand.RESTART}
    assert restarted == {ExitCode.OK, ExitCode.ERROR, ExitCode.TRANSIENT, ExitCode.HUNG}


def test_tries_without_a_commit_are_counted_in_a_row() -> None:
    budget = Budget(tries=2)
    in_vain = []
    for commits, committed_step in [(0, -1), (1, 10), (0, 10), (0, 10)]:
        budget.note_progress(commits, committed_step)
        budget.charge()
        in_vain.append(budget.in_vain)
    assert in_vain == [1, 0, 1, 2]
    assert budget.is_spent


def test_a_commit_that_its_maker_did_not_live_to_tell_counts() -> None:
    budget = Budget(tries=2)
    budget.note_progress(0, -1)
    budget.charge()
    budget.note_progress(0, 20)  # it has resumed from step 20
    budget.charge()
    assert budget.in_vain == 1


def test_a_commit_after_falling_back_counts() -> None:
    budget = Budget(tries=2)
    budget.note_progress(1, 100)
    budget.charge()
    budget.note_progress(1, 60)
    budget.charge()
    assert (budget.in_vain, budget.newest_step) == (0, 100)


@pytest.mark.parametrize(("restarts", "failures", "is_out"), [(0, 1, True), (1, 1, False)])
def test_a_limit_in_all_stands_beside(restarts: int, failures: int, *, is_out: bool) -> None:
    budget = Budget(tries=9, restarts=restarts)
    for _ in range(failures):
        budget.note_progress(1, 10)
        budget.charge()
    assert budget.is_out_of_restarts is is_out


def test_pauses_are_short_at_first_grow_and_have_a_limit() -> None:
    budget = Budget(tries=100)
    pauses = []
    for _ in range(12):
        budget.charge()
        pauses.append(budget.pause_seconds)
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


@pytest.mark.parametrize(
    ("tries", "starts", "steps_over"),
    [
        (3, [True, True], True),
        (3, [True], False),
        (3, [False, True], False),
        (3, [True, False], False),
        (4, [False, True, True], True),
        (4, [True, True], False),
        (2, [True], False),
    ],
)
def test_the_last_try_steps_over_what_kills_every_start(
    tries: int, starts: list[bool], *, steps_over: bool
) -> None:
    budget = Budget(tries=tries)
    for died_of_start in starts:
        assert not budget.take_step_over()
        budget.note_progress(0, -1)
        budget.charge(died_of_start=died_of_start)
    assert budget.take_step_over() == steps_over
    assert not budget.take_step_over(), "said once"


def test_the_last_restart_of_all_steps_over_too() -> None:
    budget = Budget(tries=9, restarts=2)
    for _ in range(2):
        budget.note_progress(0, -1)
        budget.charge(died_of_start=True)
    assert budget.take_step_over()


def test_what_ended_by_another_node_counts_there() -> None:
    budget = Budget(tries=2)
    for _ in range(7):
        budget.note_progress(0, -1)
        budget.charge(is_of_others=True)
    assert not budget.is_spent
    budget.note_progress(0, -1)
    budget.charge(is_of_others=True)
    assert budget.is_spent, "nobody is at fault for ever"
    budget.note_progress(1, 5)
    assert budget.own == budget.of_others == 0


def test_own_failures_count_among_those_of_others() -> None:
    budget = Budget(tries=2)
    for is_of_others in (False, True, True, False):
        assert not budget.is_spent
        budget.note_progress(0, -1)
        budget.charge(is_of_others=is_of_others)
    assert budget.is_spent
