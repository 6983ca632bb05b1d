"""What becomes of a job of two ranks when its store fails during its saves or its resume."""

from typing import Any

import pytest
from s3_training import (
    LARGE_ROWS,
    SMALL_ROWS,
    Outcome,
    RunRanks,
    ask_again_at_once,
    check_run,
    committed_steps,
    store_of,
    train,
)

from keepstep.errors import StorageUnavailable
from keepstep.storage import s3_client
from keepstep.testing.fault_proxy import FaultProxy
from keepstep.testing.fault_rules import Rule
from keepstep.testing.faults import (
    ACCESS_DENIED,
    ERROR_IN_OK,
    INTERNAL_ERROR,
    SLOW_DOWN,
    Fault,
    FlipByte,
    LoseReply,
    ResetReply,
    ResetRequest,
    TearUpload,
    TruncateReply,
)

Where = dict[str, Any]
PART = {"method": "PUT", "query": "partNumber"}
COMPLETE = {"method": "POST", "query": "uploadId"}

PASSES: dict[int, list[tuple[Fault, Where]]] = {
    SMALL_ROWS: [
        (SLOW_DOWN, {"method": "PUT", "times": 3}),
        (LoseReply(), {"method": "PUT", "times": 4}),
        (TearUpload(100), {"method": "PUT", "times": 3}),
        (LoseReply(), {"method": "PUT", "path": "manifest.json"}),
    ],
    LARGE_ROWS: [
        (ResetRequest(), {"method": "POST", "times": 2}),
        (ERROR_IN_OK, COMPLETE | {"times": 2}),
        (LoseReply(), COMPLETE | {"times": 2}),
        (LoseReply(hang_seconds=60), PART),
    ],
}
"""By the size of the model, what the saves of steps 1, 2, 3 and 4 meet."""
LASTS: dict[int, list[tuple[Fault, Where]]] = {
    SMALL_ROWS: [(SLOW_DOWN, {"method": "PUT"}), (ACCESS_DENIED, {"method": "PUT"})],
    LARGE_ROWS: [(SLOW_DOWN, PART), (INTERNAL_ERROR, COMPLETE)],
}
"""By the size of the model, what the saves of steps 1 and 3 meet."""
OPTIONS = {"every": 1, "retry_seconds": 0.5}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent store is given up after a second, and asked again at once."""
    monkeypatch.setattr(s3_client, "_READ_TIMEOUT_SECONDS", 1)
    ask_again_at_once(monkeypatch)


def spoil(proxy: FaultProxy, step: int, fault: Fault, where: Where) -> Rule:
    """Requests for the objects of one step meet a fault, unless ``where`` names other ones."""
    return proxy.inject(fault, **({"path": f"steps/{step:012}-"} | where))


def results(outcomes: list[Outcome]) -> list[tuple[int, int, type[Exception] | None]]:
    """The step restored, the step reached, and the kind of error, by rank."""
    return [(o.restored_step, o.step, type(o.error) if o.error else None) for o in outcomes]


@pytest.mark.parametrize("rows", PASSES, ids=["small", "large"])
def test_saves_survive_what_passes(
    run_ranks: RunRanks, s3_uri: str, proxy: FaultProxy, rows: int
) -> None:
    rules = [spoil(proxy, n + 1, *PASSES[rows][n]) for n in range(4)]
    outcomes = run_ranks(2, train, s3_uri, 4, {"every": 1, "retry_seconds": 20.0}, rows)
    assert results(outcomes) == [(0, 4, None)] * 2
    assert [rule.hits for rule in rules] == [where.get("times", 1) for _, where in PASSES[rows]]
    assert sum(outcome.retries for outcome in outcomes) >= sum(rule.hits for rule in rules)
    storage = store_of(s3_uri)
    assert committed_steps(storage) == [1, 2, 3, 4]
    check_run(storage)


@pytest.mark.parametrize(
    "rows", [SMALL_ROWS, pytest.param(LARGE_ROWS, marks=pytest.mark.long)], ids=["small", "large"]
)
def test_saves_that_cannot_be_are_abandoned_and_the_next_ones_commit(
    run_ranks: RunRanks, s3_uri: str, proxy: FaultProxy, rows: int
) -> None:
    for step, (fault, where) in zip((1, 3), LASTS[rows], strict=True):
        spoil(proxy, step, fault, where | {"times": None})
    outcomes = run_ranks(2, train, s3_uri, 4, OPTIONS, rows)
    assert results(outcomes) == [(0, 4, None)] * 2
    storage = store_of(s3_uri)
    assert committed_steps(storage) == [2, 4]
    check_run(storage)


def test_what_a_failing_store_leaves_is_swept_by_the_next_start(
    run_ranks: RunRanks, s3_uri: str, proxy: FaultProxy
) -> None:
    spoil(proxy, 1, SLOW_DOWN, COMPLETE | {"times": None})
    spoil(proxy, 1, SLOW_DOWN, {"method": "DELETE", "times": None})
    spoil(proxy, 2, LoseReply(), {"method": "POST", "query": "uploads"})
    manifests = spoil(
        proxy, 2, LoseReply(), {"method": "PUT", "path": "manifest.json", "times": None}
    )
    outcomes = run_ranks(2, train, s3_uri, 2, OPTIONS, LARGE_ROWS)
    assert results(outcomes) == [(0, 2, None)] * 2
    assert manifests.hits > 1, "no reply came, yet the commit counts"
    storage = store_of(s3_uri)
    assert committed_steps(storage) == [2]
    assert len(storage.uploads("")) == 3, "one of each rank at step 1, one begun twice at step 2"
    proxy.clear()
    outcomes = run_ranks(2, train, s3_uri, 2, OPTIONS, LARGE_ROWS)
    assert results(outcomes) == [(2, 2, None)] * 2
    check_run(storage)


def test_a_resume_ends_alike_on_all_ranks_or_survives(
    run_ranks: RunRanks, s3_uri: str, proxy: FaultProxy
) -> None:
    assert results(run_ranks(2, train, s3_uri, 2, OPTIONS)) == [(0, 2, None)] * 2
    storage = store_of(s3_uri)
    before = {info.key for info in storage.list("")}
    spoil(proxy, 2, SLOW_DOWN, {"method": "GET", "times": None})
    outcomes = run_ranks(2, train, s3_uri, 3, OPTIONS)
    assert results(outcomes) == [(0, 0, StorageUnavailable)] * 2
    assert {info.key for info in storage.list("")} == before
    proxy.clear()

    passing = (SLOW_DOWN, ResetRequest(), ResetReply(20), TruncateReply(20), LoseReply(60))
    rules = [spoil(proxy, 2, fault, {"method": "GET"}) for fault in passing]
    rules.append(spoil(proxy, 2, FlipByte(30), {"method": "GET", "header": "range"}))
    outcomes = run_ranks(2, train, s3_uri, 3, OPTIONS | {"retry_seconds": 20.0})
    assert [rule.hits for rule in rules] == [1] * 6
    assert results(outcomes) == [(2, 3, None)] * 2
    check_run(storage)
