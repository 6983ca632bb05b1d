import random

import pytest

from keepstep.elastic.rendezvous.liveness import Liveness
from keepstep.elastic.rendezvous.roster import Roster, in_words, restored
from keepstep.elastic.rendezvous.rules import (
    DEPARTURE_SETTLE_SECONDS,
    Bounds,
    Times,
    may_call,
    may_form,
    reason_to_rejoin,
)
from keepstep.elastic.rendezvous.settings import Settings, settings_from
from keepstep.errors import ConfigError

A, B, C, D = (f"10.0.0.{number}/7/ab" for number in (1, 2, 3, 4))
SETTINGS = Settings()
BOUNDS = Bounds(2, 3)


def joining(*nodes: str, roster: Roster | None = None) -> Roster:
    roster = roster or Roster()
    for node in nodes:
        roster = roster.with_joining(node)
    return roster


def formed(*nodes: str) -> Roster:
    return joining(*nodes).with_round_formed(len(nodes))


def times(now: float, *, commit: float | None = None, **seen: float) -> Times:
    named = zip("abcd", (A, B, C, D), strict=True)
    arrivals = {node: seen[name] for name, node in named if name in seen}
    return Times(now, arrivals, seen.get("departure"), commit)


def test_ranks_go_by_name_with_numbers_as_numbers() -> None:
    roster = formed("node10/1/x", "node9/1/x", "node9/1/w")
    assert roster.formed == ("node9/1/w", "node9/1/x", "node10/1/x")


def test_roster_survives_its_text() -> None:
    roster = formed(A, B).with_meeting_point("h:1").with_ready(A).called().with_joining(C)
    assert Roster.from_json(roster.to_json()) == roster


def test_surplus_nodes_wait_and_never_push_out_one_of_the_last_round() -> None:
    roster = joining(D, A, B, roster=formed(A, B)).with_round_formed(2)
    assert (roster.formed, roster.joining) == ((A, B), (D,))


def test_no_round_is_formed_below_the_minimum() -> None:
    assert not may_form(joining(A), BOUNDS, times(1e9, a=0), SETTINGS)


def test_enough_nodes_wait_for_one_more_after_each_arrival() -> None:
    wait = SETTINGS.last_call_timeout
    assert not may_form(joining(A, B), BOUNDS, times(5 + wait - 1, a=0, b=5), SETTINGS)
    assert may_form(joining(A, B), BOUNDS, times(5 + wait, a=0, b=5), SETTINGS)
    assert may_form(joining(A, B, C), BOUNDS, times(5, a=0, b=5, c=5), SETTINGS)


def test_survivors_form_at_once_when_the_missing_are_gone() -> None:
    roster = joining(A, B, roster=formed(A, B, C))
    assert not may_form(roster, BOUNDS, times(1, a=1, b=1), SETTINGS)
    assert may_form(roster.without([C]), BOUNDS, times(1, a=1, b=1), SETTINGS)


def test_complete_job_forms_no_round() -> None:
    assert not may_form(joining(A, B, C).completed(), BOUNDS, times(1e9, a=0), SETTINGS)


def test_newcomers_are_admitted_after_a_commit_once_they_have_settled() -> None:
    roster = joining(C, D, roster=formed(A, B))
    bounds = Bounds(2, 8)
    assert not may_call(roster, bounds, times(20, commit=9, c=10, d=10), SETTINGS)
    assert may_call(roster, bounds, times(20, commit=11, c=10, d=10), SETTINGS)
    assert not may_call(roster, bounds, times(20, commit=11, c=10, d=19), SETTINGS)
    assert may_call(roster, Bounds(2, 4), times(20, commit=11, c=10, d=19), SETTINGS)


def test_newcomers_are_admitted_without_a_commit_in_the_end() -> None:
    roster = joining(C, roster=formed(A, B))
    wait = SETTINGS.admit_timeout
    assert not may_call(roster, BOUNDS, times(10 + wait - 1, c=10), SETTINGS)
    assert may_call(roster, BOUNDS, times(10 + wait, c=10), SETTINGS)


def test_nobody_is_called_for_nodes_without_room() -> None:
    assert not may_call(joining(D, roster=formed(A, B, C)), BOUNDS, times(1e9, d=0), SETTINGS)


@pytest.mark.parametrize(
    ("roster", "reason"),
    [
        (formed(A, B), None),
        (joining(C, roster=formed(A, B)), None),
        (formed(A, B).without([B]).completed(), None),
        (joining(C, roster=formed(A, B)).called(), "wait to be admitted"),
        (joining(B, roster=formed(A, B)), "stopped their workers"),
        (formed(A, B).without([B]), "are gone"),
        (formed(A, B).without([A]), "taken for dead"),
        (joining(B, C, roster=formed(A, B).without([A])).with_round_formed(2), "without this"),
    ],
)
def test_member_rejoins_for_a_reason(roster: Roster, reason: str | None) -> None:
    now = times(10, departure=10 - DEPARTURE_SETTLE_SECONDS)
    assert (reason or "") in (reason_to_rejoin(roster, A, 1, now) or "")
    assert (reason is None) == (reason_to_rejoin(roster, A, 1, now) is None)


def test_departure_is_acted_upon_after_it_has_settled() -> None:
    assert reason_to_rejoin(formed(A, B).without([B]), A, 1, times(10, departure=9.9)) is None


def test_empty_store_gets_back_what_the_nodes_know() -> None:
    known = formed(A, B)
    assert restored(known, None) == known
    assert restored(None, None) == Roster()


def test_round_never_goes_back_and_who_came_to_an_empty_store_waits() -> None:
    known = joining(A, B, roster=formed(A, B)).with_round_formed(2)
    merged = restored(known, formed(C))
    assert (merged.round, merged.members, merged.joining) == (2, (A, B), (C,))


def test_newer_roster_in_the_store_counts() -> None:
    newer = joining(A, B, roster=formed(A, B)).with_round_formed(2)
    assert restored(formed(A, B), newer) == newer


def test_node_is_silent_only_when_its_counter_stands_still() -> None:
    liveness = Liveness(4.0)
    for second in range(20):
        silent = liveness.look({A: second, B: 7}, float(second))
        assert silent == ({B} if second >= 4 else set())


def test_pause_of_the_observer_kills_nobody() -> None:
    liveness = Liveness(4.0)
    liveness.look({A: 1}, 0.0)
    assert liveness.look({A: 1}, 100.0) == set()
    assert liveness.look({A: 2}, 100.5) == set()


def test_silence_before_the_pardon_does_not_count() -> None:
    liveness = Liveness(4.0)
    for second in range(5):
        liveness.look({A: 1}, float(second))
    liveness.pardon(10.0)
    # The counter of a store that was replaced by an empty one starts anew: no sign of life.
    assert not any(liveness.look({A: 0}, float(second)) for second in range(5, 14))
    assert liveness.look({A: 0}, 14.0) == {A}


def test_any_order_of_arrivals_and_losses_keeps_the_roster_sound() -> None:
    """No node twice, no round below the minimum or above the maximum, rounds only grow."""
    for seed in range(200):
        draw = random.Random(seed)
        roster, bounds = Roster(), Bounds(2, 3)
        for now in range(60):
            node = draw.choice((A, B, C, D))
            before = roster.round
            action = draw.choice(("join", "leave", "form"))
            if action == "join":
                roster = roster.with_joining(node)
            elif action == "leave":
                roster = roster.without([node])
            elif may_form(roster, bounds, times(float(now)), SETTINGS):
                roster = roster.with_round_formed(bounds.max_nodes)
                assert 2 <= len(roster.formed) <= 3, f"seed {seed}"
            assert len(set(roster.nodes)) == len(roster.nodes), f"seed {seed}"
            assert roster.round - before in (0, 1), f"seed {seed}"


def test_nodes_are_named_by_address() -> None:
    assert in_words([B, A]) == "10.0.0.1, 10.0.0.2"
    assert in_words([]) == "none"


def test_configuration_is_read_and_what_torchrun_adds_is_left() -> None:
    settings = settings_from({"timeout": 900, "join_timeout": "5", "is_host": "false"})
    assert settings == Settings(join_timeout=5.0, is_host=False)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"keep_alive_interval": "1"}, "keep_alive_interval.*knows admit_timeout"),
        ({"join_timeout": "soon"}, "join_timeout=soon"),
        ({"join_timeout": "-1"}, "positive"),
        ({"is_host": "maybe"}, "true or false"),
        ({"heartbeat_timeout": "1"}, "at least four"),
    ],
)
def test_configuration_that_cannot_be_right_is_refused(conf: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from(conf)
