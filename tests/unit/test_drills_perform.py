"""Whatever goes wrong in a drill, its record is there, and the next drill is performed."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_drills_judge import KILLED

from keepstep.drills import perform
from keepstep.drills.catalog import select
from keepstep.drills.evidence import Evidence
from keepstep.drills.judges import JUDGES, judge
from keepstep.drills.perform import Ground, judged
from keepstep.drills.record import Record, read_record
from keepstep.drills.scenario import Act
from keepstep.drills.stage import Stage
from keepstep.errors import BarrierTimeout
from keepstep.storage.local import LocalStorage

(ZOMBIE,) = select(("zombie",))
ALONE = replace(ZOMBIE, is_open_ended=True)
"""It needs no uninterrupted run."""


def play_wrongly(stage: Stage, acts: tuple[Act, ...]) -> None:
    stage.note("kill", "rank 1")
    raise RuntimeError("a player is wrong")


def fail(evidence: Evidence) -> str:
    raise KeyError("restart")


def test_a_player_that_fails_costs_neither_the_record_nor_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage, "play", play_wrongly)
    record = Ground(tmp_path).perform(ALONE)
    assert record.broken_off == "RuntimeError: a player is wrong"
    assert not record.is_good
    assert read_record(tmp_path / "zombie") == record
    assert [each.kind for each in record.injections] == ["kill"]


def test_a_reference_that_fails_leaves_what_was_acted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(stage: Stage, acts: tuple[Act, ...]) -> None:
        if stage.name != "zombie":
            raise BarrierTimeout("the job did not end")
        stage.note("kill", "rank 1")
        stage.notes["steps"] = 90

    monkeypatch.setattr(Stage, "play", play)
    record = Ground(tmp_path).perform(ALONE)
    assert record.broken_off == "the job did not end"
    assert [each.kind for each in record.injections] == ["kill"]
    assert record.remains is not None


@pytest.mark.parametrize(("steps", "seconds"), [(8, 180.0), (40, 180.0), (400, 1800.0)])
def test_a_job_of_more_steps_may_take_longer(tmp_path: Path, steps: int, seconds: float) -> None:
    stage = Stage("mine", LocalStorage(tmp_path), {"train.steps": steps}, tmp_path)
    assert stage.timeout_seconds == seconds


def test_the_record_is_there_before_it_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(record: Record) -> Record:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "play", play_wrongly)
    monkeypatch.setattr(perform, "judged", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Ground(tmp_path).perform(ALONE)
    assert read_record(tmp_path / "zombie").broken_off is not None


def test_what_cannot_be_told_is_no_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perform, "evidence_of", fail)
    (verdict,) = judged(Record(drill=ZOMBIE)).verdicts
    assert not verdict.is_good
    assert "KeyError: 'restart'" in verdict.evidence


def test_a_judge_that_fails_has_no_good_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JUDGES, "intact", ("I3", fail))
    verdict = judge("intact", KILLED)
    assert verdict is not None
    assert (verdict.is_good, verdict.invariant) == (False, "I3")
    assert "KeyError: 'restart'" in verdict.evidence


def test_a_judge_that_is_not_there_has_no_good_verdict() -> None:
    verdict = judge("of_another_version", KILLED)
    assert verdict is not None
    assert not verdict.is_good
