"""What a job of two ranks does when its store is slow or fails for longer than a request waits."""

import threading
from typing import Any

import pytest
from s3_training import (
    LARGE_ROWS,
    RunRanks,
    ask_again_at_once,
    check_run,
    committed_steps,
    store_of,
    train,
)

from keepstep.errors import CommitAborted
from keepstep.session import saves
from keepstep.testing.fault_proxy import FaultProxy
from keepstep.testing.fault_rules import Rule
from keepstep.testing.faults import SLOW_DOWN, SlowBody

FAILING = {"every": 1, "retry_seconds": 0.2, "failed_saves_allowed": 1}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saves, "_PAUSE_SECONDS", 0.2)
    ask_again_at_once(monkeypatch)


def fail_all_saves(proxy: FaultProxy) -> Rule:
    return proxy.inject(SLOW_DOWN, method="PUT", path="/steps/", times=None)


def test_a_store_that_is_too_slow_costs_a_save_and_no_training(
    run_ranks: RunRanks, s3_uri: str, proxy: FaultProxy
) -> None:
    # Whatever is on its way when the deadline comes is still sent to its end.
    proxy.inject(SlowBody(4_000_000), method="PUT", path="steps/000000000001-", times=None)
    options: dict[str, Any] = {"every": 1, "deadline_seconds": 1.0, "when_failing": "continue"}
    outcomes = run_ranks(2, train, s3_uri, 2, options, LARGE_ROWS)
    assert [(outcome.step, outcome.error) for outcome in outcomes] == [(2, None)] * 2
    storage = store_of(s3_uri)
    assert committed_steps(storage) == [2]
    check_run(storage)


@pytest.mark.parametrize(
    ("policy", "reached"),
    [
        # What became of a step's save shows at the next step, and the second failure is too much.
        ({"when_failing": "stop"}, 2),
        pytest.param(
            {"when_failing": "pause", "longest_pause_seconds": 0.5}, 2, marks=pytest.mark.long
        ),
    ],
    ids=["stop", "pause"],
)
def test_a_store_that_stays_away_ends_the_job_on_all_ranks(
    run_ranks: RunRanks, s3_uri: str, proxy: FaultProxy, policy: dict[str, Any], reached: int
) -> None:
    fail_all_saves(proxy)
    outcomes = run_ranks(2, train, s3_uri, 9, FAILING | policy)
    assert [type(outcome.error) for outcome in outcomes] == [CommitAborted] * 2
    assert [outcome.step for outcome in outcomes] == [reached] * 2
    assert "SlowDown" in "".join(str(outcome.error) for outcome in outcomes)
    proxy.clear()
    assert committed_steps(store_of(s3_uri)) == []


def test_a_paused_job_waits_for_the_store_and_loses_no_step(
    run_ranks: RunRanks, s3_uri: str, proxy: FaultProxy
) -> None:
    first = proxy.inject(SLOW_DOWN, method="PUT", path="steps/000000000001-", times=None)
    gone = threading.Event()

    def go_away_and_come_back() -> None:
        first.wait()
        paused = proxy.inject(SLOW_DOWN, method="PUT", path="steps/000000000003-", times=None)
        fail_all_saves(proxy)
        paused.wait()  # the second save in a row has failed by now, and is repeated at step 3
        with proxy.down():
            gone.set()
        proxy.clear()

    outside = threading.Thread(target=go_away_and_come_back)
    outside.start()
    outcomes = run_ranks(
        2, train, s3_uri, 4, FAILING | {"when_failing": "pause", "longest_pause_seconds": 60.0}
    )
    outside.join()
    assert gone.is_set()
    assert [(outcome.step, outcome.error) for outcome in outcomes] == [(4, None)] * 2
    storage = store_of(s3_uri)
    assert set(committed_steps(storage)) == {3, 4}
    check_run(storage)
