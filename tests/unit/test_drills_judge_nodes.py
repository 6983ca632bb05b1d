"""Judges of jobs on nodes, and of rival histories: the honest pass, and each lie is found out."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from test_drills_judge import KILLED, RESUMED, checkpoint, id_of, start, with_history

from keepstep.commit.catalog import Status
from keepstep.drills.evidence import Evidence
from keepstep.drills.judges import judge, lines, nodes
from keepstep.drills.results import Injection


def event(name: str, generation: int, rank: int, time: float, **fields: Any) -> dict[str, Any]:
    return {"event": name, "generation": generation, "rank": rank, "time": time, **fields}


def stop(rank: int, step: int, committed_step: int) -> dict[str, Any]:
    return event(
        *("stop", 1, rank, 9.0),
        is_preempted=True,
        step=step,
        committed_step=committed_step,
        lost_steps=step - committed_step,
    )


def failure(**first: object) -> dict[str, Any]:
    first = {"rank": 1, "what": "hung", "error": "", "is_stopped": False, **first}
    first = {"is_overdue": False, "is_waiting": False, **first}
    return {"first": first, "restarts": [], "decision": "restarting", "exit_code": 1}


STEPS = tuple(
    event("samples", generation, rank, 10.0 * generation + step, step=step)
    for generation, steps in ((1, range(1, 6)), (2, range(5, 9)))
    for step in steps
    for rank in (0, 1)
)
ONCE = with_history(KILLED, starts=RESUMED.starts[:1])
ALIVE = replace(
    ONCE,
    events=STEPS,
    injections=(
        Injection(time=11.5, kind="kill store", target="store"),
        Injection(time=14.5, kind="start store", target="store"),
    ),
)
TOLD = replace(
    KILLED, events=(stop(0, 4, 4), stop(1, 4, 4)), notes={"befallen": [1], "failures": {}}
)
LATE = replace(KILLED, events=(stop(0, 6, 4), stop(1, 6, 4)))
HUNG = replace(
    KILLED,
    notes={
        "culprits": [[1, 1]],
        "failures": {"1": failure(is_overdue=True), "0": failure(is_overdue=True, is_waiting=True)},
        "stacks": {"1": 'File "train.py", line 3 in step'},
    },
)
GIVEN_UP = replace(
    KILLED,
    notes={
        "failures": {
            "0": {
                **failure(error="ValueError: poison"),
                "decision": "3 tries in a row have committed nothing: giving up with 93",
                "restarts": [{"counted": True}, {"counted": True}],
            }
        }
    },
)
GROUPED = replace(
    KILLED,
    notes={"worlds": [2, 2], "least_ranks": 2, "outlived": [{"node": 1, "processes": 0}]},
)
SKEWED = replace(
    KILLED,
    events=tuple({**each, "time": each["time"] + 60 * each["rank"]} for each in STEPS),
    notes={"skew_seconds": [60, 0]},
)
STEPPED_BACK = replace(
    SKEWED, events=(event("step", 1, 0, 100.0), event("step", 1, 0, 41.0)), history=RESUMED
)
RIVALS = replace(
    KILLED, events=(*STEPS, event("samples", 1, 0, 26.0, step=6), event("generation", 2, 0, 20.0))
)
POISONED = with_history(
    KILLED,
    checkpoints=(
        checkpoint(2, 1),
        checkpoint(4, 1),
        checkpoint(6, 1, Status.QUARANTINED),
        checkpoint(6, 2),
        checkpoint(8, 2),
    ),
)
HONEST: Mapping[str, Evidence] = {
    "clock_stepped_back": STEPPED_BACK,
    "clocks_were_wrong": SKEWED,
    "competed": RIVALS,
    "died_with_agent": GROUPED,
    "gave_up_for_a_reason": GIVEN_UP,
    "hang_is_named": HUNG,
    "left_without_loss": TOLD,
    "loss_is_told": LATE,
    "never_undersized": GROUPED,
    "others_not_charged": TOLD,
    "resumed_newest": KILLED,
    "stepped_over": POISONED,
    "trained_without_store": ALIVE,
    "undisturbed": ONCE,
    "worlds_as_planned": GROUPED,
}


def with_notes(evidence: Evidence, **notes: object) -> Evidence:
    return replace(evidence, notes={**evidence.notes, **notes})


def with_failure(evidence: Evidence, node: str, **changes: object) -> Evidence:
    failures = deepcopy(dict(evidence.notes["failures"]))
    failures[node] = {**failures.get(node, failure()), **changes}
    return with_notes(evidence, failures=failures)


def with_small_start(evidence: Evidence) -> Evidence:
    small = replace(start(2, id_of(4, 1)), world_size=1)
    return with_history(evidence, starts=(start(1, None), small))


def with_last_resume(evidence: Evidence, step: int) -> Evidence:
    return with_history(evidence, starts=(start(1, None), start(2, id_of(step, 1))))


def with_lost_commit(evidence: Evidence) -> Evidence:
    """The manifest of what was resumed from is gone, and nobody missed it."""
    (first, _, *others) = evidence.history.checkpoints
    uncommitted = checkpoint(4, 1, Status.UNCOMMITTED)
    lost = with_history(evidence, checkpoints=(first, uncommitted, *others))
    return with_last_resume(lost, 2)


LIES: list[tuple[str, str, Callable[[Evidence], Evidence]]] = [
    ("undisturbed", "there were 2 starts", lambda e: with_history(e, starts=RESUMED.starts)),
    ("worlds_as_planned", "[2, 1], not [2, 2]", with_small_start),
    ("never_undersized", "with 1 ranks, fewer than 2", with_small_start),
    (
        "left_without_loss",
        "different (step, committed step): [(4, 4), (5, 5)]",
        lambda e: replace(e, events=(stop(0, 4, 4), stop(1, 5, 5))),
    ),
    (
        "left_without_loss",
        "at step 6, but committed is 4",
        lambda e: replace(e, events=LATE.events),
    ),
    (
        "left_without_loss",
        "but committed is 6",  # as the ranks say; but there is no such checkpoint
        lambda e: replace(e, events=(stop(0, 6, 6), stop(1, 6, 6))),
    ),
    ("left_without_loss", "1 of 2 ranks", lambda e: replace(e, events=e.events[:1])),
    (
        "loss_is_told",
        "tells of 0 lost steps",
        lambda e: replace(e, events=({**e.events[0], "lost_steps": 0},)),
    ),
    ("loss_is_told", "resumed from step 2", lambda e: with_last_resume(e, 2)),
    (
        "others_not_charged",
        "node 0 was charged: restarting",
        lambda e: with_failure(e, "0", restarts=[{"counted": True}]),
    ),
    ("hang_is_named", "said to hang", lambda e: with_notes(e, culprits=[[0, 0]])),
    ("hang_is_named", "no stack", lambda e: with_notes(e, stacks={})),
    (
        "died_with_agent",
        "3 processes of node 1",
        lambda e: with_notes(e, outlived=[{"node": 1, "processes": 3}]),
    ),
    (
        "gave_up_for_a_reason",
        "does not say why",
        lambda e: with_failure(e, "0", first=failure()["first"]),
    ),
    ("gave_up_for_a_reason", "after 1 tries", lambda e: with_failure(e, "0", restarts=[])),
    ("gave_up_for_a_reason", "no launcher", lambda e: with_failure(e, "0", decision="")),
    (
        "trained_without_store",
        "no step was made",
        lambda e: replace(e, events=tuple(x for x in e.events if x["time"] > 14.5)),
    ),
    ("resumed_newest", "not from step 4", lambda e: with_last_resume(e, 2)),
    ("resumed_newest", "though step 4", with_lost_commit),
    ("clocks_were_wrong", "at most 0.0 s apart", lambda e: replace(e, events=STEPS)),
    ("clock_stepped_back", "no clock went back", lambda e: replace(e, events=STEPS)),
    ("competed", "made no step beside", lambda e: replace(e, events=STEPS)),
    (
        "competed",
        "of the older job counts",
        lambda e: with_history(e, checkpoints=(*e.history.checkpoints, checkpoint(6, 1))),
    ),
    ("stepped_over", "0 checkpoints are set aside", lambda e: replace(e, history=RESUMED)),
    ("stepped_over", "the last start resumed from step 6", lambda e: with_last_resume(e, 6)),
]


@pytest.mark.parametrize("name", HONEST)
def test_judge_accepts_an_honest_history(name: str) -> None:
    verdict = judge(name, HONEST[name])
    assert verdict.is_good, verdict.evidence
    assert verdict.evidence


@pytest.mark.parametrize(
    ("name", "objection", "tamper"), LIES, ids=[f"{name}: {text}" for name, text, _ in LIES]
)
def test_judge_finds_out_a_lie(
    name: str, objection: str, tamper: Callable[[Evidence], Evidence]
) -> None:
    verdict = judge(name, tamper(HONEST[name]))
    assert not verdict.is_good
    assert objection in verdict.evidence


def test_every_judge_is_lied_to() -> None:
    judges = {*lines.JUDGES, *nodes.JUDGES}
    assert {name for name, _, _ in LIES} == judges == set(HONEST)
