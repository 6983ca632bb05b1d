"""Judges of saves that went wrong: the honest pass, and each lie is found out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_drills_judge import KILLED, REFERENCE, id_of, with_checkpoint, with_history, with_notes

from keepstep.commit.catalog import Status
from keepstep.drills.evidence import Evidence
from keepstep.drills.history import FailedSave
from keepstep.drills.judges import judge, saves

ALL = replace(KILLED, history=REFERENCE)
DISTORTED = with_notes(ALL, distorted=[["slow-down", 12]])
FAILED = replace(
    with_checkpoint(ALL, id_of(6, 1), status=Status.UNCOMMITTED),
    events=tuple(
        {"event": "save_failed", "generation": 1, "step": 6, "rank": rank, "time": 6.0}
        for rank in (0, 1)
    ),
)
FAILED = with_history(FAILED, failed_saves=(FailedSave(1, 6, is_survived=True),))

HONEST = {
    "every_save_committed": ALL,
    "failed_everywhere": FAILED,
    "requests_were_distorted": DISTORTED,
}


def without_commit(evidence: Evidence, step: int) -> Evidence:
    return with_checkpoint(evidence, id_of(step, 1), status=Status.UNCOMMITTED)


def failed(*, is_survived: bool) -> dict[str, Any]:
    return {"failed_saves": (FailedSave(1, 6, is_survived=is_survived),)}


LIES: list[tuple[str, str, Callable[[Evidence], Evidence]]] = [
    ("every_save_committed", "save of step 6 failed", lambda _: FAILED),
    ("every_save_committed", "[4] are not committed", lambda e: without_commit(e, 4)),
    ("failed_everywhere", "no save has failed", lambda _: ALL),
    ("failed_everywhere", "ranks [1] do not know", lambda e: replace(e, events=e.events[:1])),
    (
        "failed_everywhere",
        "said to have failed, and counts",
        lambda e: with_checkpoint(e, id_of(6, 1), status=Status.COMMITTED),
    ),
    (
        "failed_everywhere",
        "training ended",
        lambda e: with_history(e, **failed(is_survived=False)),
    ),
    ("failed_everywhere", "after step 6", lambda e: without_commit(e, 8)),
    ("failed_everywhere", "[2] are neither", lambda e: without_commit(e, 2)),
    ("requests_were_distorted", "'torn'", lambda e: with_notes(e, distorted=[["torn", 0]])),
    ("requests_were_distorted", "was to be spoiled", lambda e: with_notes(e, distorted=[])),
]


@pytest.mark.parametrize("name", HONEST)
def test_judge_accepts_an_honest_history(name: str) -> None:
    verdict = judge(name, HONEST[name])
    assert verdict is not None
    assert verdict.is_good, verdict.evidence
    assert verdict.evidence


@pytest.mark.parametrize(
    ("name", "objection", "tamper"), LIES, ids=[f"{name}: {text}" for name, text, _ in LIES]
)
def test_judge_finds_out_a_lie(
    name: str, objection: str, tamper: Callable[[Evidence], Evidence]
) -> None:
    verdict = judge(name, tamper(HONEST[name]))
    assert verdict is not None
    assert not verdict.is_good
    assert objection in verdict.evidence


def test_every_judge_is_lied_to() -> None:
    assert {name for name, _, _ in LIES} == set(saves.JUDGES) == set(HONEST)
