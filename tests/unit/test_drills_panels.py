"""Every drill can pass: its panel has no objection to the history that the drill is to have."""

from dataclasses import replace

import pytest
from test_drills_judge import KILLED, REFERENCE

from keepstep.drills.catalog import catalog
from keepstep.drills.evidence import Evidence
from keepstep.drills.judges import judge
from keepstep.drills.node_acts import Assemble
from keepstep.drills.rivals import AtOnce
from keepstep.drills.scenario import Drill

OF_ANY_HISTORY = {
    *("close_losses", "hops_keep_state", "intact", "interrupted", "nothing_lost", "once_per_epoch"),
    *("restored_exactly", "restored_exactly_elsewhere", "resumed_newest", "same_bits"),
    *("same_order", "undisturbed"),
}
"""Judges that need nothing but a history; the others look for what befell the job in particular."""


def has_one_start(drill: Drill) -> bool:
    """Whether nothing calls for a second one."""
    (first, *_) = drill.acts
    worlds = [len(act.worlds) for act in drill.acts if isinstance(act, Assemble)]
    return isinstance(first, AtOnce) or "undisturbed" in drill.judges or worlds == [1]


def ideal(drill: Drill) -> Evidence:
    return replace(KILLED, history=REFERENCE) if has_one_start(drill) else KILLED


def test_nothing_starts_twice_where_saves_fail_or_nodes_need_not_restart() -> None:
    others = [drill for drill in catalog() if drill.family not in ("D10", "D11", "D16")]
    assert {drill.name for drill in others if has_one_start(drill)} == {
        "store-away",
        "store-lost-rendezvous",
        "store-lost-commit",
        "notice-in-rendezvous",
        "crash-loop-node",
        "two-jobs-at-once",
    }
    faults = [drill for drill in catalog() if drill not in others]
    assert [drill.name for drill in faults if not has_one_start(drill)] == ["disk-read-only"]


@pytest.mark.parametrize("drill", catalog(), ids=lambda drill: drill.name)
def test_a_panel_accepts_the_history_that_its_drill_is_to_have(drill: Drill) -> None:
    verdicts = [judge(name, ideal(drill)) for name in drill.judges if name in OF_ANY_HISTORY]
    assert [verdict for verdict in verdicts if verdict and not verdict.is_good] == []
    assert verdicts or drill.name == "damage-all"


@pytest.mark.parametrize("drill", catalog(), ids=lambda drill: drill.name)
def test_where_a_job_resumes_it_is_looked_whether_all_came_back(drill: Drill) -> None:
    looks = any(name.startswith("restored_exactly") for name in drill.judges)
    assert looks is not (has_one_start(drill) or drill.name == "damage-all")
