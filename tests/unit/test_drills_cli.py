"""``keepstep drill``: what it prints and how it ends, with drills that are made up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keepstep.cli.main import main
from keepstep.drills.catalog import catalog, select
from keepstep.drills.perform import Ground
from keepstep.drills.record import Record, write_record
from keepstep.drills.scenario import Drill
from keepstep.drills.verdicts import Verdict
from keepstep.errors import ExitCode

GOOD = Verdict("same_bits", "I5", is_good=True, evidence="all equal")
BAD = Verdict("intact", "I3", is_good=False, evidence="block 3 is damaged")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What records of drills say, by drill; a directory is made as a real drill makes it."""
    said: dict[str, dict[str, Any]] = {}

    def perform(ground: Ground, drill: Drill) -> Record:
        fields = {"verdicts": (GOOD,), "seconds": 2.0, **said.get(drill.name, {})}
        directory = None if "skipped" in fields else str(ground._new_directory(drill.name))
        return Record(drill=drill, directory=directory, **fields)

    monkeypatch.setattr(Ground, "perform", perform)
    return said


def test_list_names_every_drill(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "list", "--json"]) == ExitCode.OK
    listed = json.loads(capsys.readouterr().out)["drills"]
    assert [each["name"] for each in listed] == [drill.name for drill in catalog()]
    assert all(each["description"].endswith(".") for each in listed)


def test_all_passed_ends_with_ok_and_leaves_nothing(
    fake: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drill", "run", "zombie", "--dir", str(tmp_path)]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "PASS  zombie  2.0 s" in out
    assert "1 passed in 2 s" in out
    assert list(tmp_path.iterdir()) == []


def test_a_failure_ends_with_error_and_is_kept(
    fake: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake["zombie"] = {"verdicts": (GOOD, BAD)}
    assert main(["drill", "run", "zombie*", "--dir", str(tmp_path)]) == ExitCode.ERROR
    out = capsys.readouterr().out
    assert "I3 intact: block 3 is damaged" in out
    assert "1 passed, 1 failed" in out
    assert [each.name for each in tmp_path.iterdir()] == ["zombie"]


def test_keep_keeps_what_passed(fake: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert main(["drill", "run", "zombie", "--dir", str(tmp_path), "--keep"]) == ExitCode.OK
    assert [each.name for each in tmp_path.iterdir()] == ["zombie"]


def test_json_holds_every_verdict(
    fake: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake["zombie"] = {"verdicts": (GOOD, BAD)}
    fake["zombie-early"] = {"skipped": "no module"}
    main(["drill", "run", "zombie*", "--dir", str(tmp_path), "--json"])
    failed, skipped = json.loads(capsys.readouterr().out)["drills"]
    assert failed["outcome"] == "fail"
    assert [verdict["is_good"] for verdict in failed["verdicts"]] == [True, False]
    assert (skipped["outcome"], skipped["reason"]) == ("skip", "no module")


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "run", "nope"]) == ExitCode.CONFIG
    assert "nope" in capsys.readouterr().err


def test_a_drill_whose_module_is_missing_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepstep.drills.requirements.find_spec", lambda name: None)
    (drill,) = (each for each in catalog() if each.needs == ("module:sklearn",))
    record = Ground(tmp_path).perform(drill)
    assert record.skipped == "sklearn is not installed"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_an_earlier_drill_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zombie").mkdir()
    assert main(["drill", "run", "zombie", "--dir", str(tmp_path)]) == ExitCode.CONFIG
    assert "choose another --dir" in capsys.readouterr().err


def test_a_record_is_judged_again_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (drill,) = select(("zombie",))
    write_record(Record(drill=drill, verdicts=(GOOD,)), tmp_path)
    assert main(["drill", "judge", str(tmp_path)]) == ExitCode.ERROR
    out = capsys.readouterr().out
    assert "no job was run" in out
    assert "1 failed" in out


def test_judging_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "judge"]) == ExitCode.USAGE
    assert "name at least one record" in capsys.readouterr().err


def test_a_replay_performs_the_same_drill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (drill,) = select(("zombie",))
    told = replace(drill, name="mine", description="Not in the catalog.")
    record = Record(drill=told, seed=7, settings={"train.steps": 12})
    seen: list[Record] = []

    def perform(ground: Ground, drill: Drill) -> Record:
        seen.append(Record(drill=drill, seed=ground._seed, settings=dict(ground._settings)))
        return seen[-1]

    monkeypatch.setattr(Ground, "perform", perform)
    assert main(["drill", "replay", str(write_record(record, tmp_path))]) == ExitCode.OK
    assert seen == [record]
