"""The faults of a soak are a function of the seed; what is left over after one is counted."""

import json
from itertools import islice
from pathlib import Path

import pytest

from keepstep.drills.catalog import select
from keepstep.drills.record import Record
from keepstep.drills.remains import Remains
from keepstep.drills.results import Injection
from keepstep.drills.soak.cleaning import left_over
from keepstep.drills.soak.figures import figures
from keepstep.drills.soak.schedule import QUIET_NETWORK, ROUND_ENDS, SORTIE_ENDS, rules, sorties
from keepstep.failpoints import arm, disarm
from keepstep.storage.local import LocalStorage


def first(seed: int, *, has_proxy: bool = False, count: int = 60) -> list[object]:
    return list(islice(sorties(seed, has_proxy=has_proxy), count))


def test_the_same_seed_gives_the_same_faults_and_another_others() -> None:
    assert first(1) == first(1)
    assert first(1) != first(2)


def test_every_kind_comes_up_and_launchers_end_with_their_last_round() -> None:
    found = list(islice(sorties(3, has_proxy=True), 100))
    ends = {each.end.kind for sortie in found for each in sortie[:-1]}
    assert ends == set(ROUND_ENDS)
    assert {sortie[-1].end.kind for sortie in found} == set(SORTIE_ENDS)
    quiet = {fault.kind for sortie in found for each in sortie for fault in each.quiet}
    assert quiet > set(QUIET_NETWORK)


@pytest.mark.parametrize("seed", range(5))
def test_rules_can_be_armed_in_every_incarnation(seed: int) -> None:
    for sortie in islice(sorties(seed, has_proxy=False), 20):
        for restart in range(len(sortie)):
            try:
                arm(rules(sortie), rank=0, restart_count=restart)
            finally:
                disarm()


def test_quiet_faults_come_before_the_end_of_their_round() -> None:
    for sortie in islice(sorties(4, has_proxy=False), 50):
        for each in sortie:
            if each.end.kind == "kill-in-save":
                assert all(fault.passes < each.end.passes for fault in each.quiet)


def test_what_no_checkpoint_refers_to_is_left_over(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("ledger/g000001/rank-00000.jsonl", b"")
    storage.put("steps/000000000004-g000001-000000000000/__0_0.distcp", b"x")
    assert left_over(storage) == ["steps/000000000004-g000001-000000000000/__0_0.distcp"]


def test_figures_tell_work_from_waste() -> None:
    (drill,) = select(("zombie",))
    times = {1: 1.0, 2: 1.5, 3: 2.0}
    events = [
        {"event": "step", "generation": 1, "rank": 0, "step": step, "time": time}
        for step, time in times.items()
    ]
    remains = Remains(events=tuple(events), claims=(), checkpoints=())
    kill = Injection(time=1.0, kind="kill", target="rank 1")
    found = figures(Record(drill=drill, seconds=4.0, injections=(kill,), remains=remains))
    assert found is not None
    assert found.faults == {"kill": 1}
    assert found.steps_run == 3
    assert found.goodput == 0.0  # no claim: none of it counts
    assert json.dumps(found.document())
