"""What policies keep, by tables written by hand."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from keepstep.commit.catalog import Status
from keepstep.commit.layout import CheckpointId
from keepstep.commit.retention import Candidate, Decision, Extent, Facts, plan_retention
from keepstep.config import parse_keep

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def checkpoint(step: int, generation: int = 1) -> CheckpointId:
    return CheckpointId(step, generation, "0123456789ab")


def committed(
    step: int, minute: int = 0, loss: float | None = None, tags: tuple[str, ...] = ()
) -> Candidate:
    metrics = {} if loss is None else {"loss": loss}
    facts = Facts(NOON + timedelta(minutes=minute), metrics, tags, size_bytes=step)
    return Candidate(checkpoint(step), Status.COMMITTED, facts)


RUN = [
    committed(10, minute=10, loss=5.0),
    committed(20, minute=50, loss=3.0, tags=("release",)),
    committed(30, minute=70, loss=3.0),
    committed(40, minute=90, loss=4.0),
    committed(50, minute=130, loss=2.0, tags=("release", "paper")),
    committed(60, minute=100, loss=6.0),  # its clock was set back
]


def decide(
    candidates: Sequence[Candidate], keep: str, *, newest: int | None = 60, **options: Extent
) -> dict[int, Decision]:
    newest_verified = None if newest is None else checkpoint(newest)
    decisions = plan_retention(
        candidates, parse_keep(keep), {}, newest_verified=newest_verified, **options
    )
    assert [decision.id for decision in decisions] == sorted(c.id for c in candidates)
    assert all(decision.reasons for decision in decisions)
    return {decision.id.step: decision for decision in decisions}


def kept(decisions: dict[int, Decision]) -> list[int]:
    return [step for step, decision in decisions.items() if decision.is_kept]


@pytest.mark.parametrize(
    ("keep", "steps"),
    [
        ("all", [10, 20, 30, 40, 50, 60]),
        ("last=1", [60]),
        ("last=3", [40, 50, 60]),
        ("last=99", [10, 20, 30, 40, 50, 60]),
        ("every=25steps", [10, 30, 50]),
        ("every=20", [10, 20, 40, 60]),
        ("every=1h", [10, 30, 50]),
        ("every=24h", [10]),
        ("best=loss:min", [50]),
        ("best=loss:min:2", [20, 50]),
        ("best=loss:min:3", [20, 40, 50]),
        ("best=loss:max:2", [10, 60]),
        ("best=accuracy:max:2", []),
        ("tag=release", [20, 50]),
        ("tag=rel", []),
        ("last=1,best=loss:min,tag=paper,every=24h", [10, 50, 60]),
    ],
)
def test_a_policy_keeps_what_one_of_its_rules_keeps(keep: str, steps: list[int]) -> None:
    assert kept(decide(RUN, keep)) == steps


@pytest.mark.parametrize("keep", ["last=2", "every=25steps", "every=1h", "best=loss:min:2"])
def test_what_was_kept_is_kept_when_it_is_asked_again(keep: str) -> None:
    steps = kept(decide(RUN, keep))
    left = [candidate for candidate in RUN if candidate.id.step in steps]
    assert kept(decide(left, keep)) == steps


@pytest.mark.parametrize("keep", ["every=25steps", "every=1h"])
def test_pruning_after_each_commit_keeps_what_pruning_once_would(keep: str) -> None:
    left: list[Candidate] = []
    for candidate in RUN:
        left.append(candidate)
        steps = kept(decide(left, keep, newest=candidate.id.step))
        left = [candidate for candidate in left if candidate.id.step in steps]
    assert kept(decide(left, keep)) == kept(decide(RUN, keep))


def test_every_rule_that_keeps_a_checkpoint_is_named() -> None:
    decisions = decide(RUN, "last=2,best=loss:min,tag=paper")
    assert decisions[50].reasons == ("last=2", "best=loss:min:1", "tag=paper")
    assert decisions[10].reasons == ("no rule of last=2,best=loss:min:1,tag=paper keeps it",)


def test_what_is_newer_than_the_newest_verified_one_stays_and_counts_for_no_rule() -> None:
    decisions = decide(RUN, "last=1", newest=40)
    assert kept(decisions) == [40, 50, 60]
    assert decisions[60].reasons == ("newer than the newest verified one",)


def test_without_a_verified_checkpoint_nothing_is_removed() -> None:
    extra = [
        Candidate(checkpoint(70), Status.QUARANTINED),
        Candidate(checkpoint(80), Status.SUPERSEDED),
        Candidate(checkpoint(90), Status.UNCOMMITTED),
        Candidate(checkpoint(100), Status.PRUNED),
    ]
    decisions = decide([*RUN, *extra], "last=1", newest=None, extent=Extent(True, True))
    assert kept(decisions) == list(range(10, 101, 10))


@pytest.mark.parametrize(
    ("status", "extent", "is_kept"),
    [
        (Status.SUPERSEDED, Extent(), True),
        (Status.SUPERSEDED, Extent(quarantined=True), True),
        (Status.SUPERSEDED, Extent(superseded=True), False),
        (Status.QUARANTINED, Extent(), True),
        (Status.QUARANTINED, Extent(superseded=True), True),
        (Status.QUARANTINED, Extent(quarantined=True), False),
        (Status.PRUNED, Extent(), False),
        (Status.UNCOMMITTED, Extent(), False),
    ],
)
def test_what_does_not_count_goes_by_its_status(
    status: Status, extent: Extent, is_kept: bool
) -> None:
    other = Candidate(checkpoint(15), status)
    decisions = decide([*RUN, other], "all", extent=extent)
    assert kept(decisions) == [10, *([15] if is_kept else []), 20, 30, 40, 50, 60]


def test_an_attempt_that_may_still_commit_stays() -> None:
    attempt = Candidate(checkpoint(70), Status.UNCOMMITTED, may_still_commit=True)
    assert decide([*RUN, attempt], "last=1")[70].reasons == ("may be under way, or commit late",)


def test_no_rule_counts_a_checkpoint_whose_manifest_cannot_be_read() -> None:
    unreadable = Candidate(checkpoint(55), Status.COMMITTED)
    decisions = decide([*RUN, unreadable], "last=2")
    assert kept(decisions) == [50, 55, 60]
    assert decisions[55].reasons == ("its manifest cannot be read",)


def test_what_is_protected_stays_whatever_else_is_said() -> None:
    protected = {checkpoint(10): ["pinned"], checkpoint(70): ["pinned"]}
    pruned = Candidate(checkpoint(70), Status.PRUNED)
    decisions = plan_retention(
        [*RUN, pruned], parse_keep("last=1"), protected, newest_verified=checkpoint(60)
    )
    assert [d.id.step for d in decisions if d.is_kept] == [10, 60, 70]
    assert decisions[0].reasons == ("pinned",)
