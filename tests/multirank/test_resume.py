"""The life of a resume: rules, mismatches, damage and fall-back, the same on all ranks."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Strategy, adamw, build, open_session, sgd, step

import keepstep
from keepstep.commit.catalog import Catalog, Status
from keepstep.errors import (
    AllCheckpointsDamagedError,
    ConfigError,
    KeepstepError,
    NoCheckpointError,
    StateMismatchError,
    StorageUnavailable,
)
from keepstep.storage.local import LocalStorage
from keepstep.storage.local_reading import FileReader
from rank_processes import RunRanks


def train(uri: str, *, to_step: int = 3, strategy: Strategy = "none", **options: Any) -> Any:
    """Save after each step up to ``to_step``; what the resume returned, or the error it raised."""
    model = build(strategy)
    optimizer = adamw(model)
    try:
        with open_session(uri, **options) as session:
            session.track(model=model, optim=optimizer)
            restored = session.restore()
            while session.step < to_step:
                step(model, optimizer)
                session.tick(samples=6)
                session.save()
            return restored
    except KeepstepError as error:
        return error


def train_ranks(rank: int, uri: str, options: dict[str, Any]) -> Any:
    return train(uri, **options)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def files_of(uri: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(uri).rglob("*") if path.is_file()}


def newest(uri: str) -> Path:
    return max((Path(uri) / "steps").iterdir())


class TestRules:
    """Every row of the table: what there is, what is asked, what happens."""

    def test_nothing_and_auto_is_a_fresh_start(self, uri: str) -> None:
        assert train(uri).fresh

    @pytest.mark.parametrize("resume", ["must", 7])
    def test_nothing_and_must_or_a_step_is_an_error(self, uri: str, resume: str | int) -> None:
        error = train(uri, resume=resume)
        assert isinstance(error, NoCheckpointError)
        assert error.exit_code == 66
        assert not Path(uri).exists(), "nothing was created"

    def test_must_lists_what_is_there_instead(self, uri: str) -> None:
        train(uri, to_step=1)
        (newest(uri) / "manifest.json").unlink()
        shutil.rmtree(Path(uri) / "ledger")
        assert "step 1 (uncommitted)" in str(train(uri, resume="must"))

    def test_some_and_auto_goes_on_from_the_newest(self, uri: str) -> None:
        train(uri)
        restored = train(uri)
        assert (restored.step, restored.generation, restored.skipped) == (3, 2, ())

    def test_some_and_never_is_an_error(self, uri: str) -> None:
        train(uri)
        before = files_of(uri)
        error = train(uri, resume="never")
        assert isinstance(error, ConfigError)
        assert "up to step 3" in str(error)
        assert files_of(uri) == before

    def test_an_older_step_by_number_sets_the_later_ones_aside(self, uri: str) -> None:
        train(uri)
        restored = train(uri, resume=2, to_step=2)
        assert restored.step == 2
        entries = {e.id.step: e.status for e in Catalog(LocalStorage(uri)).entries()}
        assert entries == {1: Status.COMMITTED, 2: Status.COMMITTED, 3: Status.SUPERSEDED}

    def test_a_step_that_is_not_there_is_an_error_that_lists_those_that_are(self, uri: str) -> None:
        train(uri)
        assert "there are: 1, 2, 3" in str(train(uri, resume=5))

    def test_all_damaged_is_an_error_and_nothing_is_overwritten(self, uri: str) -> None:
        train(uri)
        for path in (Path(uri) / "steps").iterdir():
            flip(path / "__0_0.distcp")
        before = files_of(uri)
        error = train(uri)
        assert isinstance(error, AllCheckpointsDamagedError)
        assert error.exit_code == 65
        for step_number in (1, 2, 3):
            assert f"step {step_number} " in str(error)
        after = files_of(uri)
        assert {name: after[name] for name in before} == before
        assert all("quarantine" in name for name in after.keys() - before.keys())
        again = train(uri)
        assert isinstance(again, AllCheckpointsDamagedError), "never a fresh start instead"

    def test_one_chosen_step_that_is_damaged_is_not_replaced_by_another(self, uri: str) -> None:
        train(uri)
        flip(newest(uri) / "__0_0.distcp")
        error = train(uri, resume=3)
        assert isinstance(error, AllCheckpointsDamagedError)
        assert "step 3" in str(error)
        assert "step 2" not in str(error)

    def test_must_on_a_mistyped_uri_creates_nothing(self, uri: str) -> None:
        assert "holds no keepstep run" in str(train(uri, resume="must"))
        assert not Path(uri).exists()

    def test_restoring_twice_or_ticking_before_is_an_error(self, uri: str) -> None:
        with open_session(uri) as session:
            with pytest.raises(ConfigError, match="call restore"):
                session.tick()
            session.restore()
            with pytest.raises(ConfigError, match="resumes once"):
                session.restore()


class TestMathematics:
    def test_a_change_is_refused_with_a_diff(self, uri: str) -> None:
        train(uri, mathematics={"seed": 0, "optim.lr": 0.003})
        error = train(uri, mathematics={"seed": 0, "optim.lr": 0.1})
        assert isinstance(error, ConfigError)
        assert "optim.lr" in str(error)
        assert "0.003" in str(error)
        assert "seed" not in str(error)
        assert "--accept-change" in str(error)

    def test_a_change_can_be_accepted(self, uri: str) -> None:
        train(uri, mathematics={"optim.lr": 0.003})
        assert train(uri, mathematics={"optim.lr": 0.1}, accept_change=True).step == 3

    def test_what_a_caller_does_not_tell_is_not_compared(self, uri: str) -> None:
        train(uri, mathematics={"optim.lr": 0.003})
        assert train(uri).step == 3


class TestMismatch:
    def load(self, uri: str, **tracked: Any) -> str:
        before = [
            t.clone()
            for o in tracked.values()
            if isinstance(o, torch.nn.Module)
            for t in o.state_dict().values()
        ]
        with open_session(uri) as session:
            session.track(**tracked)
            with pytest.raises(StateMismatchError) as caught:
                session.restore()
        after = [
            t
            for o in tracked.values()
            if isinstance(o, torch.nn.Module)
            for t in o.state_dict().values()
        ]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        return str(caught.value)

    def test_every_kind_of_difference_is_in_one_table(self, uri: str) -> None:
        train(uri)
        model = build("none", rows=40)
        model.second = torch.nn.Linear(3, 1, bias=False)
        model.extra = torch.nn.Parameter(torch.zeros(2))
        model.norm = model.norm.to(torch.float64)
        told = self.load(uri, model=model, optim=adamw(model))
        for row in (
            "model.embedding.weight     shape       float32[37, 7]  float32[40, 7]",
            "model.extra                missing     -               float32[2]",
            "model.second.bias          unexpected  float32[1]      -",
            "model.norm.running_mean    dtype       float32[3]      float64[3]",
            "optim: extra               missing     -               parameter",
            "optim: second.bias         unexpected  parameter       -",
        ):
            assert row.split() in [line.split() for line in told.splitlines()], told

    def test_an_object_that_is_not_tracked_is_unexpected(self, uri: str) -> None:
        train(uri)
        told = self.load(uri, model=build("none"))
        assert "optim.param_groups.0.lr" in told

    def test_an_object_that_was_not_saved_is_missing(self, uri: str) -> None:
        train(uri)
        model = build("none")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer := adamw(model), 1)
        told = self.load(uri, model=model, optim=optimizer, sched=scheduler)
        assert "sched" in told

    def test_other_parameter_groups_are_explained(self, uri: str) -> None:
        train(uri)
        model = build("none")
        told = self.load(uri, model=model, optim=torch.optim.AdamW(model.parameters()))
        assert ["optim.param_groups", "groups"] in [line.split()[:2] for line in told.splitlines()]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def zero_block(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[: min(4096, len(data))] = bytes(min(4096, len(data)))
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES: list[Callable[[Path], None]] = [flip, zero_block, truncate, Path.unlink]
FILES = [
    "__0_0.distcp",
    "__1_0.distcp",
    "__0.index.json",
    "__1.index.json",
    ".metadata",
    "manifest.json",
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_named_set_aside_and_all_ranks_fall_back_together(
    run_ranks: RunRanks, uri: str, damage: Callable[[Path], None], file: str
) -> None:
    run_ranks(2, train_ranks, uri, {"strategy": "fsdp"})
    damaged = newest(uri)
    damage(damaged / file)
    one, other = run_ranks(2, train_ranks, uri, {"strategy": "fsdp", "to_step": 4})
    assert one == other
    assert (one.step, one.generation) == (2, 2)
    if file != "manifest.json" or damage is not Path.unlink:  # that one was set aside unread
        (skipped,) = one.skipped
        assert file in skipped.reason
        has_block = file.endswith(".distcp") and damage is not Path.unlink
        assert (" block " in skipped.reason) == has_block
    (marked,) = (e for e in Catalog(LocalStorage(uri)).entries() if e.status is Status.QUARANTINED)
    assert marked.id.name == damaged.name
    assert file in (marked.reason or "")
    latest = Catalog(LocalStorage(uri)).latest()
    assert latest is not None
    assert latest.step == 4, "training went on"


def test_what_no_rank_reads_is_verified_as_well(run_ranks: RunRanks, uri: str) -> None:
    """After a change of the world size nobody needs the old ranks' generators."""
    run_ranks(2, train_ranks, uri, {"strategy": "fsdp"})
    path = newest(uri)
    index = json.loads((path / "__1.index.json").read_text())
    frame = next(f for f in index["frames"] if f["fqn"] == "ranks.00001.rng.torch")
    shard = path / "__1_0.distcp"
    data = bytearray(shard.read_bytes())
    data[frame["data_offset"]] ^= 0xFF
    shard.write_bytes(data)
    restored = run_ranks(3, train_ranks, uri, {"strategy": "fsdp"})
    assert [r.step for r in restored] == [2, 2, 2]
    assert "__1_0.distcp block " in restored[0].skipped[0].reason


def test_a_file_that_has_grown_is_damage(uri: str) -> None:
    train(uri)
    with (newest(uri) / "__0_0.distcp").open("ab") as file:
        file.write(b"x")
    (skipped,) = train(uri).skipped
    assert re.search(r"__0_0.distcp block \d+: the file has", skipped.reason)


def test_a_lost_manifest_is_noticed_even_if_a_later_start_came_to_nothing(uri: str) -> None:
    train(uri, to_step=3)
    assert train(uri, to_step=3).step == 3  # generation 2 resumes, and commits nothing
    (newest(uri) / "manifest.json").unlink()
    shutil.rmtree(Path(uri) / "ledger")  # only the claim of generation 2 is left to tell
    assert train(uri).step == 2
    (marked,) = (e for e in Catalog(LocalStorage(uri)).entries() if e.status is Status.QUARANTINED)
    assert "manifest.json is missing, but its commit is on record" in (marked.reason or "")


def test_a_node_that_does_not_see_the_store_sets_nothing_aside(
    run_ranks: RunRanks, uri: str
) -> None:
    run_ranks(2, train_ranks, uri, {"strategy": "fsdp"})
    for error in run_ranks(2, train_elsewhere, uri):
        assert isinstance(error, StorageUnavailable)
        assert error.exit_code == 69
        assert "rank 1 finds damage where rank 0 finds none" in str(error)
        assert "Do all ranks share" in str(error)
    assert not (Path(uri) / "quarantine").exists()
    assert [r.step for r in run_ranks(2, train_ranks, uri, {"strategy": "fsdp"})] == [3, 3]


def train_elsewhere(rank: int, uri: str) -> Any:
    return train(uri if rank == 0 else f"{uri}-of-another-node", strategy="fsdp")


def test_a_checkpoint_of_another_run_is_not_taken(uri: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    train(uri, to_step=2)
    train(other, to_step=3)
    shutil.copytree(newest(other), Path(uri) / "steps" / newest(other).name)
    (skipped,) = train(uri, to_step=2).skipped
    assert "belongs to run" in skipped.reason


def test_a_ledger_line_with_strange_content_does_not_stop_a_start(uri: str) -> None:
    train(uri)
    for log in (Path(uri) / "ledger").rglob("*.jsonl"):
        log.write_bytes(log.read_bytes().replace(b'"samples"', b'"sampler"'))
    restored = train(uri)
    assert (restored.step, restored.lost) == (3, None)


def test_several_damaged_ones_are_all_passed_over(uri: str) -> None:
    train(uri, to_step=4)
    for path in sorted((Path(uri) / "steps").iterdir())[1:]:
        flip(path / "__0_0.distcp")
    restored = train(uri)
    assert restored.step == 1
    assert [skipped.checkpoint.step for skipped in restored.skipped] == [4, 3, 2]


def test_a_transient_bad_read_is_read_again(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train(uri)
    real = FileReader.read_into
    spoiled: list[int] = []

    def spoil_once(self: FileReader, offset: int, buffer: memoryview) -> int:
        count = real(self, offset, buffer)
        if not spoiled and self.size_bytes > 1000:
            spoiled.append(offset)
            buffer[0] ^= 0xFF
        return count

    monkeypatch.setattr(FileReader, "read_into", spoil_once)
    restored = train(uri)
    assert restored.step == 3
    assert spoiled


def test_lost_work_is_told_from_the_ledger(uri: str) -> None:
    model = build("none")
    optimizer = sgd(model)
    with pytest.raises(ZeroDivisionError), open_session(uri) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        for number in range(1, 8):
            step(model, optimizer)
            session.tick(samples=24)
            if number == 4:
                session.save()
        raise ZeroDivisionError
    with open_session(uri) as session:
        model = build("none")
        session.track(model=model, optim=sgd(model))
        lost = session.restore().lost
    assert lost is not None
    assert (lost.last_step, lost.committed_step, lost.steps, lost.samples) == (7, 4, 3, 72)
    assert lost.seconds > 0


def test_state_that_was_silently_not_restored_is_named(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checksums prove that bytes were read; the digest proves that they arrived."""
    train(uri)
    from keepstep.state import optimizer as module

    monkeypatch.setattr(module.NamedOptimizer, "load_state_dict", lambda self, loaded: None)
    error = train(uri)
    assert isinstance(error, KeepstepError)
    assert "optim.state.embedding.weight.exp_avg was not restored" in str(error)
    assert error.exit_code == 70


def test_a_manifest_shows_a_person_what_was_saved(uri: str) -> None:
    train(uri, mathematics={"seed": 0}, parallel={"strategy": "ddp"})
    document = json.loads((newest(uri) / "manifest.json").read_text())
    assert document["progress"] == {"samples": 18, "tokens": 0}
    assert document["parallel"] == {"strategy": "ddp"}
    assert document["state_digest"].startswith("crc64:")
    assert document["parent"].startswith("000000000002-")


def test_the_public_names_are_there() -> None:
    for name in keepstep.__all__:
        assert hasattr(keepstep, name)
    with pytest.raises(AttributeError):
        keepstep.nonsense  # noqa: B018
