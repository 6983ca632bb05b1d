"""What the Job controller decides, case by case."""

from collections.abc import Mapping
from typing import Any

import pytest

from keepstep.k8s.failure_policy import Action, verdict_on
from keepstep.testing.cluster.job_controller import JobController, Orders, parse_indexes
from keepstep.testing.cluster.pod_facts import Phase, PodFacts

DISRUPTED = {"DisruptionTarget": "True"}
IGNORE_DISRUPTION = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
RULES = [
    {
        "action": "FailJob",
        "onExitCodes": {"containerName": "main", "operator": "In", "values": [64, 93]},
    },
    IGNORE_DISRUPTION,
    {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [85, 86, 87]}},
    {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [65]}},
]


def spec(**fields: Any) -> dict[str, Any]:
    base = {"completionMode": "Indexed", "completions": 3, "parallelism": 3}
    template = {"spec": {"restartPolicy": "Never"}}
    return base | {"template": template} | fields


def failed(
    index: int,
    code: int | None = 1,
    *,
    attempt: int = 0,
    at: float = 0.0,
    conditions: Mapping[str, str] | None = None,
) -> PodFacts:
    codes = {} if code is None else {"main": code}
    return PodFacts(
        f"job-{index}-{attempt}",
        index,
        Phase.FAILED,
        exit_codes=codes,
        conditions=conditions or {},
        ended_seconds=at,
    )


def succeeded(index: int) -> PodFacts:
    return PodFacts(f"job-{index}-done", index, Phase.SUCCEEDED, exit_codes={"main": 0})


def running(index: int, *, is_terminating: bool = False, attempt: int = 9) -> PodFacts:
    name = f"job-{index}-{attempt}"
    return PodFacts(name, index, Phase.RUNNING, is_terminating=is_terminating)


def policy(*rules: Mapping[str, Any]) -> dict[str, Any]:
    return {"podFailurePolicy": {"rules": list(rules)}}


@pytest.mark.parametrize(
    ("pod", "action", "rule"),
    [
        pytest.param(failed(0, 1), Action.COUNT, None, id="no rule: counts"),
        pytest.param(failed(0, 64), Action.FAIL_JOB, 0, id="exit code in a list"),
        pytest.param(failed(0, 85), Action.IGNORE, 2, id="of any container"),
        pytest.param(failed(0, 65), Action.FAIL_INDEX, 3, id="fail index"),
        pytest.param(failed(0, 137, conditions=DISRUPTED), Action.IGNORE, 1, id="disrupted"),
        pytest.param(failed(0, 64, conditions=DISRUPTED), Action.FAIL_JOB, 0, id="first match"),
        pytest.param(failed(0, None, conditions=DISRUPTED), Action.IGNORE, 1, id="no exit code"),
        pytest.param(
            failed(0, 137, conditions={"DisruptionTarget": "False"}),
            Action.COUNT,
            None,
            id="a condition that is false",
        ),
    ],
)
def test_the_first_rule_that_matches_decides(
    pod: PodFacts, action: Action, rule: int | None
) -> None:
    verdict = verdict_on(pod, RULES)
    assert (verdict.action, verdict.rule) == (action, rule)


@pytest.mark.parametrize(
    ("codes", "wanted", "action"),
    [
        pytest.param({"main": 0, "side": 1}, {"operator": "NotIn", "values": [1]}, "Count", id="0"),
        pytest.param({"main": 3}, {"operator": "NotIn", "values": [1]}, "Ignore", id="not in"),
        pytest.param(
            {"main": 3, "side": 1},
            {"containerName": "side", "operator": "In", "values": [3]},
            "Count",
            id="another container's",
        ),
        pytest.param(
            {"main": 5, "side": 3}, {"operator": "In", "values": [3]}, "Ignore", id="the second's"
        ),
    ],
)
def test_exit_codes_of_containers_are_matched_one_by_one_and_zero_never(
    codes: dict[str, int], wanted: dict[str, Any], action: str
) -> None:
    pod = PodFacts("p", 0, Phase.FAILED, exit_codes=codes)
    assert verdict_on(pod, [{"action": "Ignore", "onExitCodes": wanted}]).action == action


def test_all_indexes_are_created_at_once_and_never_again_while_they_live() -> None:
    job = JobController(spec())
    assert job.sync([], 0.0) == Orders(create=(0, 1, 2))
    assert job.sync([running(i) for i in range(3)], 1.0) == Orders()


def test_no_more_than_parallelism_live_at_a_time() -> None:
    job = JobController(spec(parallelism=2))
    assert job.sync([], 0.0).create == (0, 1)
    assert job.sync([succeeded(0), running(1)], 1.0).create == (2,)


def test_a_job_is_complete_when_every_index_has_succeeded() -> None:
    job = JobController(spec())
    job.sync([succeeded(0), succeeded(1), running(2)], 1.0)
    assert job.status.final is None
    job.sync([succeeded(i) for i in range(3)], 2.0)
    assert job.status.final is not None
    assert (job.status.final.type, job.status.final.reason) == ("Complete", "CompletionsReached")


def test_a_failed_index_is_tried_again_after_a_pause_that_doubles() -> None:
    job = JobController(spec(backoffLimitPerIndex=5))
    others = [running(1), running(2)]
    pods = [failed(0, at=100.0), *others]
    assert job.sync(pods, 109.0).create == ()
    assert job.sync(pods, 110.0).create == (0,)
    pods.append(failed(0, attempt=1, at=200.0))
    assert job.sync(pods, 219.0).create == ()
    assert job.sync(pods, 220.0).create == (0,)


def test_ignored_failures_lengthen_the_pause_but_are_not_charged() -> None:
    job = JobController(spec(backoffLimitPerIndex=0, **policy(IGNORE_DISRUPTION)))
    pods = [failed(0, 143, attempt=n, at=100.0 * n, conditions=DISRUPTED) for n in range(4)]
    pods += [running(1), running(2)]
    job.sync(pods, 300.0)
    assert job.status.failed == 0
    assert job.status.ignored == {0: 4}
    assert not job.status.failed_indexes
    assert job.sync(pods, 379.0).create == ()
    assert job.sync(pods, 380.0).create == (0,)


def test_the_pause_has_an_end() -> None:
    job = JobController(spec(backoffLimitPerIndex=100))
    pods = [failed(0, attempt=n) for n in range(50)]
    pods += [running(1), running(2)]
    assert job.sync(pods, 599.0).create == ()
    assert job.sync(pods, 600.0).create == (0,)


@pytest.mark.parametrize(
    ("fields", "pods", "reason"),
    [
        pytest.param(
            {"backoffLimit": 1}, [failed(0), failed(1)], "BackoffLimitExceeded", id="backoffLimit"
        ),
        pytest.param(
            {"backoffLimitPerIndex": 0, "maxFailedIndexes": 1},
            [failed(0), failed(1)],
            "MaxFailedIndexesExceeded",
            id="maxFailedIndexes",
        ),
        pytest.param(
            {"backoffLimitPerIndex": 0},
            [failed(0), succeeded(1), succeeded(2)],
            "FailedIndexes",
            id="an index failed and the others are done",
        ),
        pytest.param(
            {"backoffLimitPerIndex": 5, **policy(*RULES)},
            [failed(0, 93)],
            "PodFailurePolicy",
            id="FailJob",
        ),
        pytest.param(
            {"backoffLimitPerIndex": 5, "maxFailedIndexes": 0, **policy(*RULES)},
            [failed(0, 65)],
            "MaxFailedIndexesExceeded",
            id="FailIndex needs no budget",
        ),
    ],
)
def test_a_job_fails_and_says_why(
    fields: dict[str, Any], pods: list[PodFacts], reason: str
) -> None:
    job = JobController(spec(**fields))
    job.sync(pods, 1.0)
    assert job.status.final is not None
    assert (job.status.final.type, job.status.final.reason) == ("Failed", reason)


def test_within_its_limits_a_job_goes_on() -> None:
    job = JobController(spec(backoffLimitPerIndex=1, maxFailedIndexes=1))
    job.sync([failed(0), failed(0, attempt=1), failed(1)], 0.0)
    assert job.status.failed_indexes == {0}
    assert job.status.ending is None
    assert job.status.counted == {0: 2, 1: 1}


def test_pods_are_ended_before_a_job_is_called_failed() -> None:
    job = JobController(spec(**policy(*RULES)))
    pods = [failed(0, 64), running(1), running(2)]
    assert job.sync(pods, 1.0).delete == ("job-1-9", "job-2-9")
    assert job.status.ending is not None
    assert job.status.final is None
    pods = [failed(0, 64), running(1, is_terminating=True), failed(2, 143)]
    assert job.sync(pods, 2.0) == Orders()
    assert job.status.final is None
    job.sync([failed(0, 64), failed(1, 143), failed(2, 143)], 3.0)
    assert job.status.final is not None
    assert "rule 0" in job.status.final.message


@pytest.mark.parametrize(
    ("rule", "done", "is_met"),
    [
        ({"succeededCount": 1}, [2], True),
        ({"succeededCount": 2}, [2], False),
        ({"succeededIndexes": "0"}, [0], True),
        ({"succeededIndexes": "0-1"}, [0, 2], False),
        ({"succeededIndexes": "0-1", "succeededCount": 1}, [1], True),
        ({"succeededIndexes": "0-1", "succeededCount": 1}, [2], False),
    ],
)
def test_a_success_policy_ends_the_others(
    rule: dict[str, Any], done: list[int], is_met: bool
) -> None:
    job = JobController(spec(successPolicy={"rules": [rule]}))
    pods = [succeeded(i) if i in done else running(i) for i in range(3)]
    orders = job.sync(pods, 1.0)
    assert bool(orders.delete) == is_met
    assert (job.status.ending is not None) == is_met
    if is_met:
        job.sync([succeeded(i) if i in done else failed(i, 143) for i in range(3)], 2.0)
        assert job.status.final is not None
        assert (job.status.final.type, job.status.final.reason) == ("Complete", "SuccessPolicy")


@pytest.mark.parametrize(
    ("fields", "created"),
    [
        ({"podReplacementPolicy": "Failed"}, ()),
        ({"podReplacementPolicy": "TerminatingOrFailed"}, (0,)),
        ({}, (0,)),
        (policy(IGNORE_DISRUPTION), ()),
    ],
)
def test_a_pod_that_is_terminating_keeps_its_index_if_only_failed_ones_are_replaced(
    fields: dict[str, Any], created: tuple[int, ...]
) -> None:
    job = JobController(spec(**fields))
    pods = [running(0, is_terminating=True), running(1), running(2)]
    assert job.sync(pods, 1.0).create == created


def test_a_deadline_ends_a_job_and_is_scaled_like_other_times() -> None:
    job = JobController(spec(activeDeadlineSeconds=100), seconds_scale=0.1)
    pods = [running(i) for i in range(3)]
    assert job.sync(pods, 5.0) == Orders()
    assert len(job.sync(pods, 15.0).delete) == 3
    assert job.status.ending is not None
    assert job.status.ending.reason == "DeadlineExceeded"


def test_a_suspended_job_has_no_pods() -> None:
    job = JobController(spec(suspend=True))
    assert job.sync([], 0.0) == Orders()
    assert job.sync([running(0)], 0.0).delete == ("job-0-9",)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"completionMode": "NonIndexed"}, "Indexed"),
        ({"managedBy": "x"}, "managedBy"),
        ({"maxFailedIndexes": 1}, "backoffLimitPerIndex"),
        ({"maxFailedIndexes": 4, "backoffLimitPerIndex": 1}, "not be above completions"),
        (policy(IGNORE_DISRUPTION) | {"podReplacementPolicy": "TerminatingOrFailed"}, "Failed"),
        (policy(IGNORE_DISRUPTION) | {"template": {"spec": {"restartPolicy": "Always"}}}, "Never"),
    ],
)
def test_a_job_that_kubernetes_or_this_controller_would_refuse_is_refused(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        JobController(spec(**fields))


def test_indexes_are_read_as_kubernetes_writes_them() -> None:
    assert parse_indexes("1,3-5,7") == {1, 3, 4, 5, 7}
