"""``keepstep prune``, ``pin`` and ``unpin`` on a run on disk."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from run_on_disk import RunOnDisk

from keepstep.commit.catalog import Status
from keepstep.commit.layout import CheckpointId, pin_key, pruned_key
from keepstep.commit.pruning import Pruner
from keepstep.commit.retention import Extent
from keepstep.commit.starting import announce_start, announced_start, end_start
from keepstep.config import parse_keep
from keepstep.errors import CoordinationError, ExitCode, FencedError, StorageUnavailable
from keepstep.session.choosing import Chooser
from keepstep.storage.local import LocalStorage

Keepstep = Callable[..., tuple[int, str, str]]


def statuses(run: RunOnDisk) -> dict[int, Status]:
    return {entry.id.step: entry.status for entry in run.catalog.entries()}


def rows(out: str) -> list[list[str]]:
    return [[word.strip() for word in line.split("  ") if word] for line in out.splitlines()]


def test_every_decision_is_explained_and_carried_out(run: RunOnDisk, keepstep: Keepstep) -> None:
    code, out, err = keepstep("prune", run.uri, "--keep", "last=2")
    assert (code, err) == (0, "")
    header, *decisions, summary = rows(out)
    assert header == ["step", "generation", "bytes", "status", "decision", "reasons"]
    assert [(row[0], row[4], row[5]) for row in decisions] == [
        ("10", "remove", "no rule of last=2 keeps it"),
        ("20", "keep", "last=2"),
        ("30", "keep", "the newest verified one; last=2"),
    ]
    assert summary[0].startswith("1 removed (")
    assert summary[0].endswith("of checkpoints), 2 kept")
    assert statuses(run) == {20: Status.COMMITTED, 30: Status.COMMITTED}
    assert len(list((run.root / "steps").iterdir())) == 2
    assert list((run.root / "pruned").iterdir()) == [], "no mark is left"


def test_a_dry_run_says_what_a_prune_does_and_writes_nothing(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    before = sorted(run.root.rglob("*"))
    _, dry, _ = keepstep("prune", run.uri, "--keep", "last=1", "--dry-run")
    assert sorted(run.root.rglob("*")) == before
    _, wet, _ = keepstep("prune", run.uri, "--keep", "last=1")
    assert dry.replace("would be removed", "removed") == wet


def test_a_run_that_is_not_there_yet_may_be_allowed_for(tmp_path: Path, keepstep: Keepstep) -> None:
    uri = str(tmp_path / "run")
    code, _, _ = keepstep("prune", uri, "--keep", "last=1")
    assert code == ExitCode.NO_CHECKPOINT
    code, out, err = keepstep("prune", uri, "--keep", "last=1", "--may-be-empty")
    assert (code, err) == (0, "")
    assert out.startswith("0 removed (")
    assert not (tmp_path / "run").exists(), "pruning nothing writes nothing"


def test_a_run_that_is_there_is_pruned_all_the_same(run: RunOnDisk, keepstep: Keepstep) -> None:
    code, out, _ = keepstep("prune", run.uri, "--keep", "last=1", "--may-be-empty")
    assert code == 0
    assert "2 removed (" in out


def test_json_has_stable_names(run: RunOnDisk, keepstep: Keepstep) -> None:
    newest = run.catalog.candidates()[0]
    _, out, _ = keepstep("prune", run.uri, "--keep", "best=loss:min", "--json", "--dry-run")
    document = json.loads(out)
    assert document["uri"] == run.uri
    assert (document["keep"], document["is_dry_run"]) == ("best=loss:min:1", True)
    assert document["checkpoints"][-1] == {
        "name": newest.name,
        "step": 30,
        "generation": 1,
        "status": "committed",
        "size_bytes": run.catalog.manifest(newest).total_bytes,
        "is_kept": True,
        "reasons": ["the newest verified one", "best=loss:min:1"],
    }


def test_without_a_policy_only_what_crashes_left_is_removed(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    (last, *_) = run.catalog.candidates()
    dead, kept = run.leave_unfinished(40), run.leave_unfinished(25)
    run.start(resumed_from=last)
    under_way = run.leave_unfinished(50)
    code, _, _ = keepstep("prune", run.uri)
    assert code == 0
    left = {entry.id for entry in run.catalog.entries()} - set(run.catalog.candidates())
    assert left == {kept, under_way}, "a late commit of step 25 would count"
    assert dead not in left


@pytest.mark.parametrize("flag", ["--superseded", "--quarantined"])
def test_what_does_not_count_is_removed_when_that_is_asked_for(
    run: RunOnDisk, keepstep: Keepstep, flag: str
) -> None:
    third, second, _ = run.catalog.candidates()
    run.catalog.quarantine(second, "block 3 is damaged")
    run.start(resumed_from=run.catalog.candidates()[-1])
    run.save(15)
    keepstep("prune", run.uri, flag)
    left = {entry.id for entry in run.catalog.entries()}
    assert (third in left) == (flag == "--quarantined")
    assert (second in left) == (flag == "--superseded")
    assert len(list((run.root / "quarantine").iterdir())) == (flag == "--superseded")


def test_nothing_goes_before_a_newer_one_is_verified(run: RunOnDisk, keepstep: Keepstep) -> None:
    newest = run.catalog.candidates()[0]
    run.path(newest, "__1_0.distcp").write_bytes(b"short")
    _, out, _ = keepstep("prune", run.uri, "--keep", "last=1")
    assert list(statuses(run)) == [20, 30]
    damaged, verified = (row[-1] for row in reversed(rows(out)[1:-1]) if row[4] == "keep")
    assert "damaged: steps/" in damaged
    assert "has 5 bytes instead of 160" in damaged
    assert verified == "the newest verified one; last=1"


def test_damage_of_an_index_or_of_the_metadata_counts_against_the_newest(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    third, second, _ = run.catalog.candidates()
    run.flip_byte(third, "__1.index.json", 30)
    run.flip_byte(second, ".metadata", 3)
    keepstep("prune", run.uri, "--keep", "last=1")
    assert list(statuses(run)) == [10, 20, 30]


def test_the_resume_source_of_the_newest_generation_stays(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    run.start(resumed_from=run.catalog.candidates()[1])
    run.save(40)
    run.save(50)
    _, out, _ = keepstep("prune", run.uri, "--keep", "last=1", "--superseded")
    assert list(statuses(run)) == [20, 50]
    assert "generation 2 resumed from it" in out


def test_a_pin_outlasts_every_prune_until_it_is_taken_off(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    code, out, _ = keepstep("pin", run.uri, "10", "--name", "paper")
    assert (code, out.rstrip()[-15:]) == (0, "pinned as paper")
    _, out, _ = keepstep("pin", run.uri, "10")
    assert out.endswith("pinned as paper already\n")
    code, _, err = keepstep("pin", run.uri, "10", "--name", "talk")
    assert code == ExitCode.CONFIG
    assert "unpin it first" in err
    _, out, _ = keepstep("ls", run.uri)
    assert out.splitlines()[1].endswith("committed, pinned as paper")
    _, out, _ = keepstep("show", run.uri, "10", "--json")
    assert json.loads(out)["pin"] == {"name": "paper"}
    _, out, _ = keepstep("prune", run.uri, "--keep", "last=1")
    assert "pinned as paper" in out
    assert list(statuses(run)) == [10, 30]
    _, out, _ = keepstep("unpin", run.uri, "10", "--json")
    assert len(json.loads(out)["unpinned"]) == 1
    keepstep("prune", run.uri, "--keep", "last=1")
    assert list(statuses(run)) == [30]
    _, out, _ = keepstep("unpin", run.uri, "10")
    assert out == "step 10 is not pinned\n"


def test_a_pin_whose_mark_is_damaged_still_pins(run: RunOnDisk, keepstep: Keepstep) -> None:
    keepstep("pin", run.uri, "10", "--name", "paper")
    (run.root / pin_key(run.catalog.candidates()[-1])).write_bytes(b"")
    keepstep("prune", run.uri, "--keep", "last=1")
    assert list(statuses(run)) == [10, 30]


def test_what_is_being_removed_cannot_be_pinned(run: RunOnDisk, keepstep: Keepstep) -> None:
    first = run.catalog.candidates()[-1]
    run.storage.put(pruned_key(first, "0123456789ab"), b"")
    code, _, err = keepstep("pin", run.uri, "10")
    assert code == ExitCode.NO_CHECKPOINT
    assert "is being removed" in err
    assert not (run.root / pin_key(first)).exists()


def test_a_start_under_way_holds_a_prune_off(run: RunOnDisk, keepstep: Keepstep) -> None:
    start = announce_start(run.storage)
    code, _, err = keepstep("prune", run.uri, "--keep", "last=1")
    assert code == ExitCode.TRANSIENT
    assert start.key in err
    assert len(run.catalog.candidates()) == 3
    assert keepstep("prune", run.uri, "--keep", "last=1", "--dry-run")[0] == 0
    end_start(run.storage, start)
    assert keepstep("prune", run.uri, "--keep", "last=1")[0] == 0
    assert len(run.catalog.candidates()) == 1


def test_the_mark_of_a_start_that_died_ends_with_the_next_claim(run: RunOnDisk) -> None:
    announce_start(run.storage)
    with announced_start(run.storage):
        run.start(resumed_from=run.catalog.latest())
    Pruner(run.storage).prune(parse_keep("last=1"))
    assert len(run.catalog.candidates()) == 1
    assert list((run.root / "starting").iterdir()) == []


def test_an_older_job_removes_nothing_any_more(run: RunOnDisk) -> None:
    pruner = Pruner(run.storage, generation=run.generation)
    run.start(resumed_from=run.catalog.latest())
    with pytest.raises(FencedError, match="generation 2 has taken over"):
        pruner.prune(parse_keep("last=1"))
    assert len(run.catalog.candidates()) == 3


def test_the_next_prune_ends_what_was_interrupted_and_nothing_looks_damaged_meanwhile(
    run: RunOnDisk, keepstep: Keepstep, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run.catalog.candidates()[-1]
    with monkeypatch.context() as failing:
        failing.setattr(LocalStorage, "delete", fail_after_manifest(LocalStorage.delete))
        code, _, err = keepstep("prune", run.uri, "--keep", "last=2")
    assert code == ExitCode.STORAGE_UNAVAILABLE
    assert "unplugged" in err
    assert not run.path(first, "manifest.json").exists()
    assert run.path(first, "__0_0.distcp").exists()
    assert statuses(run)[10] is Status.PRUNED
    assert Chooser(run.storage).set_aside_headless(above=None) == []
    for command in ("show", "verify", "pin"):
        code, _, err = keepstep(command, run.uri, first.name)
        assert code == ExitCode.NO_CHECKPOINT
        assert "is being removed; `keepstep prune` ends it" in err
    assert "pruned" in keepstep("ls", run.uri, "--all")[1]
    assert "pruned" not in keepstep("ls", run.uri)[1]
    _, out, _ = keepstep("prune", run.uri)
    assert "its removal was begun before" in out
    assert list(statuses(run)) == [20, 30]
    assert list((run.root / "pruned").iterdir()) == []


def test_marks_of_removals_that_are_complete_are_taken_down(run: RunOnDisk) -> None:
    run.storage.put(pruned_key(CheckpointId(5, 1, "0123456789ab"), "0123456789ab"), b"")
    Pruner(run.storage).prune(parse_keep("all"))
    assert list((run.root / "pruned").iterdir()) == []


def test_a_prune_gives_up_where_things_keep_changing(
    run: RunOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, put = run.catalog.candidates()[-1], LocalStorage.put
    numbers = iter(range(99))

    def put_and_pin(self: LocalStorage, key: str, data: bytes) -> None:
        put(self, key, data)
        put(self, pin_key(CheckpointId(next(numbers), 9, first.attempt)), b"")

    monkeypatch.setattr(LocalStorage, "put", put_and_pin)
    with pytest.raises(CoordinationError, match="changes too fast to prune"):
        Pruner(run.storage).prune(parse_keep("last=1"), Extent())
    assert len(run.catalog.candidates()) == 3
    assert list((run.root / "pruned").iterdir()) == []


@pytest.mark.parametrize("words", [["--keep", "lats=3"], ["--keep"], ["--keep", "last=3,all"]])
def test_a_policy_that_cannot_be_read_is_wrong_usage(
    run: RunOnDisk, keepstep: Keepstep, words: list[str]
) -> None:
    code, _, err = keepstep("prune", run.uri, *words)
    assert code == ExitCode.USAGE
    assert "--keep" in err
    assert len(run.catalog.candidates()) == 3


def test_a_claim_that_cannot_be_read_stops_a_prune(run: RunOnDisk, keepstep: Keepstep) -> None:
    (run.root / "generations" / "000001.json").write_bytes(b"{}")
    code, _, _ = keepstep("prune", run.uri, "--keep", "last=1")
    assert code == ExitCode.DAMAGED
    assert len(list((run.root / "steps").iterdir())) == 3


def fail_after_manifest(
    delete: Callable[[LocalStorage, Iterable[str]], None],
) -> Callable[[LocalStorage, Iterable[str]], None]:
    def deleted(self: LocalStorage, keys: Iterable[str]) -> None:
        doomed = list(keys)
        if not all(key.endswith("manifest.json") for key in doomed):
            raise StorageUnavailable("unplugged")
        delete(self, doomed)

    return deleted
