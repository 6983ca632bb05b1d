"""What ledgers tell of each process's time."""

import pytest
from ledger_events import event, in_order, life, on_all

from keepstep.observability.goodput import split
from keepstep.observability.spans import Background, Cause, Span
from keepstep.observability.timeline import Episode, timeline


def test_a_first_start_is_imports_then_restore_then_steps() -> None:
    (episode,) = timeline(life(1, began=100.0, last_step=10))
    assert causes(episode) == {Cause.STARTUP: 4.0, Cause.RESTORE: 1.0, Cause.PRODUCTIVE: 10.0}
    assert (episode.began, episode.ended) == (100.0, 115.0)
    assert len(episode.rows) == 2


def test_steps_up_to_the_furthest_one_are_done_again() -> None:
    first = life(1, began=100.0, last_step=10)
    second = life(2, began=117.0, first_step=7, last_step=20, cause="rank 1 died")
    _, again = timeline([*first, *second])
    assert causes(again) == {
        Cause.DOWN: 2.0,
        Cause.STARTUP: 4.0,
        Cause.RESTORE: 1.0,
        Cause.REDO: 4.0,
        Cause.PRODUCTIVE: 10.0,
    }
    assert again.began == 115.0


def test_a_job_that_was_preempted_waits_for_nodes_until_it_is_back() -> None:
    first = life(1, began=100.0, last_step=5)
    told = on_all(2, "stop", 1, 110.5, step=5, reason="SIGTERM on rank 0", is_preempted=True)
    ended = on_all(2, "end", 1, 111.0, step=5)
    back = life(2, began=200.0, first_step=6, last_step=8, restart_count=0)
    _, again = timeline(in_order(first, told, ended, back))
    assert causes(again)[Cause.WAITING] == 89.0
    assert Cause.DOWN not in causes(again)


def test_time_after_a_complete_job_is_nobodys() -> None:
    first = in_order(life(1, began=100.0, last_step=5), on_all(2, "end", 1, 110.0, step=5))
    second = life(2, began=5000.0, first_step=6, last_step=7, restart_count=0)
    one, other = timeline([*first, *second])
    assert one.ended == 110.0
    assert other.began == 5000.0
    assert not other.is_continuation


def test_a_rendezvous_and_the_wait_for_nodes_before_it_are_told_apart() -> None:
    events = life(1, began=100.0, last_step=3)
    for each in events:
        if each["event"] == "start":
            each["before"] |= {"waiting": [80.0, 95.0], "rendezvous": [95.0, 99.0]}
    (episode,) = timeline(events)
    found = causes(episode)
    assert (found[Cause.WAITING], found[Cause.RENDEZVOUS], found[Cause.STARTUP]) == (15, 4, 5)


def test_a_launcher_counts_from_its_own_start_and_only_once() -> None:
    first, second = life(1, began=100.0, last_step=5), life(2, began=112.0, last_step=9)
    for each in [*first, *second]:
        if each["event"] == "start":
            each["before"] |= {"launcher": [90.0, each["before"]["process"][0]]}
            each["before"] |= {"rendezvous": [96.0, 98.0]} if each["generation"] == 1 else {}
    one, other = timeline([*first, *second])
    assert one.began == 90.0
    assert (causes(one)[Cause.STARTUP], causes(one)[Cause.RENDEZVOUS]) == (6 + 6, 2)
    assert causes(other)[Cause.DOWN] == 2.0


def test_stalls_evaluations_and_waits_for_data_are_no_training() -> None:
    events = in_order(
        life(1, began=100.0, last_step=10),
        [
            event("stall", 1, 1, 108.5, step=3, seconds=0.5),
            event("phase", 1, 1, 112.0, name="eval", step=6, seconds=1.5),
            event("work", 1, 1, 115.0, first=1, last=10, began=105.0, data_s=2.0),
        ],
    )
    (episode,) = timeline(events)
    assert causes(episode, rank=1) == pytest.approx(
        {
            Cause.STARTUP: 4.0,
            Cause.RESTORE: 1.0,
            Cause.DATA: 2.0,
            Cause.STAGE: 0.5,
            Cause.EVAL: 1.5,
            Cause.PRODUCTIVE: 6.0,
        }
    )
    assert Cause.DATA not in causes(episode, rank=0)


def test_a_slow_first_step_is_start_up_beyond_a_typical_one() -> None:
    events = life(1, began=100.0, last_step=10)
    for each in events:
        if each["event"] == "step":
            each["time"] += 7.0
    (episode,) = timeline(events)
    assert causes(episode)[Cause.STARTUP] == pytest.approx(11.0)
    assert causes(episode)[Cause.PRODUCTIVE] == pytest.approx(10.0)


def test_a_rank_that_fell_silent_is_down_until_the_others_end() -> None:
    events = in_order(life(1, began=100.0, last_step=10), [event("spike", 1, 0, 118.0)])
    (episode,) = timeline(events)
    assert causes(episode, rank=1)[Cause.DOWN] == 3.0
    assert Cause.DOWN not in causes(episode, rank=0)


def test_what_a_zombie_does_after_its_successor_opened_counts_for_nothing() -> None:
    zombie = life(1, began=100.0, last_step=50)
    successor = life(2, began=120.0, first_step=5, last_step=9, restart_count=0)
    one, other = timeline([*zombie, *successor])
    assert one.ended == 123.0, "its last step before the successor opened its session"
    assert other.incarnation.furthest_before == 18
    assert other.began == 123.0


def test_a_job_that_was_stopped_is_silent_until_its_successor_takes_over() -> None:
    stopped = life(1, began=100.0, last_step=5)
    late = [event("save_failed", 1, 0, 150.0, step=5, error="fenced")]
    successor = life(2, began=118.0, first_step=5, last_step=9, restart_count=0)
    one, other = timeline([*stopped, *late, *successor])
    assert one.ended == 110.0
    assert causes(other)[Cause.WAITING] == 8.0


def test_a_save_is_written_then_committed_in_the_background() -> None:
    save = {"persisting": 108.0, "write_s": 2.0, "arrive_s": 0.5, "publish_s": 0.5, "depart_s": 0}
    events = in_order(
        life(1, began=100.0, last_step=20),
        [
            event("save_begun", 1, 0, 107.9, step=2),
            event("save", 1, 0, 112.0, step=2, **save),
            event("save_begun", 1, 0, 120.0, step=14),
        ],
    )
    (episode,) = timeline(events)
    assert list(episode.rows[0].background) == [
        Span(Background.WRITE, 108.0, 110.0, "step 2"),
        Span(Background.COMMIT, 110.0, 111.0, "step 2"),
        Span(Background.CUT_SHORT, 120.0, 125.0, "step 14"),
    ]


def test_ledgers_of_older_versions_leave_what_they_do_not_tell_unknown() -> None:
    events = [e for e in life(1, began=100.0, last_step=4) if e["event"] != "start"]
    (episode,) = timeline(events)
    assert causes(episode)[Cause.PRODUCTIVE] == pytest.approx(4.01)
    again = [e for e in life(2, began=115.0, first_step=3, last_step=4) if e["event"] != "start"]
    _, later = timeline([*events, *again])
    assert causes(later)[Cause.UNKNOWN] == pytest.approx(10.99)


def test_a_generation_that_never_came_to_a_step_is_all_start() -> None:
    events = [e for e in life(1, began=100.0, last_step=4) if e["event"] != "step"]
    (episode,) = timeline(events)
    assert set(causes(episode)) == {Cause.STARTUP, Cause.RESTORE}


def test_nothing_makes_nothing() -> None:
    assert timeline([]) == []


def causes(episode: Episode, rank: int = 0) -> dict[Cause, float]:
    return split(episode.rows[rank].spans)
