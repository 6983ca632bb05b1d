"""Stock DCP reads what keepstep writes, and keepstep what stock DCP writes."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from models import Strategy, adamw, assert_equal, build, full_state, open_session, step
from torch.distributed.checkpoint.state_dict import get_state_dict

import keepstep
from keepstep.checkpoint.writer import ShardWriter
from keepstep.commit.layout import CheckpointId
from keepstep.errors import CorruptCheckpointError, NoCheckpointError, StateMismatchError
from keepstep.storage.local import LocalStorage
from rank_processes import RunRanks


def save_ours(rank: int, uri: str, strategy: Strategy) -> dict[str, Any]:
    model = build(strategy)
    optimizer = adamw(model)
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        step(model, optimizer)
        session.tick()
    return full_state(model=model, optim=optimizer)


def checkpoint_in(uri: Path) -> Path:
    (path,) = (uri / "steps").iterdir()
    return path


STOCK_LOADER = """
import sys, torch, pickle
sys.modules["keepstep"] = None  # importing it is an error from here on
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
path, out = sys.argv[1:]
dcp_to_torch_save(path, out + "/merged.pt")
merged = torch.load(out + "/merged.pt", weights_only=True)
template = {
    "model": {k: torch.full_like(v, 77) for k, v in merged["model"].items()},
    "optim": {
        "state": {
            p: {k: torch.full_like(v, 77) for k, v in s.items()}
            for p, s in merged["optim"]["state"].items()
        },
        "param_groups": [{k: None for k in g} for g in merged["optim"]["param_groups"]],
    },
}
dcp.load(template, checkpoint_id=path)
for name, tensor in merged["model"].items():
    assert torch.equal(tensor, template["model"][name]), name
for p, entries in merged["optim"]["state"].items():
    for k, tensor in entries.items():
        assert torch.equal(tensor, template["optim"]["state"][p][k]), (p, k)
assert template["optim"]["param_groups"] == merged["optim"]["param_groups"]
assert "keepstep" not in {name.split(".")[0] for name, m in sys.modules.items() if m is not None}
"""


@pytest.mark.parametrize(("strategy", "ranks"), [("fsdp", 3), ("ddp", 2), ("none", 1)])
def test_stock_dcp_reads_a_checkpoint_where_keepstep_cannot_be_imported(
    run_ranks: RunRanks, tmp_path: Path, strategy: Strategy, ranks: int
) -> None:
    saved = run_ranks(ranks, save_ours, str(tmp_path / "run"), strategy)[0]
    path = checkpoint_in(tmp_path / "run")
    command = [sys.executable, "-I", "-c", STOCK_LOADER, str(path), str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    for name, tensor in merged["model"].items():
        assert torch.equal(tensor, saved[f".model.{name}"]), name
    assert merged["optim"]["param_groups"][0]["note"] == "matrices"


def save_through_stock_dcp(rank: int, uri: str) -> dict[str, Any]:
    model = build("fsdp")
    optimizer = adamw(model)
    step(model, optimizer)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    writer = ShardWriter(LocalStorage(uri), CheckpointId(1, 1, "0" * 12))
    dcp.save({"model": model_state, "optim": optimizer_state}, storage_writer=writer)
    shard, index = writer.records()
    assert (shard.file, index.file) == (f"__{rank}_0.distcp", f"__{rank}.index.json")
    return full_state(model=model, optim=optimizer)


def test_our_writer_works_under_stock_dcp_save(run_ranks: RunRanks, tmp_path: Path) -> None:
    saved = run_ranks(2, save_through_stock_dcp, str(tmp_path))[0]
    model = build("none", seed=5)
    optimizer = adamw(model)
    keepstep.load(as_stock(checkpoint_in(tmp_path)), model=model, optim=optimizer)
    assert_equal(saved, full_state(model=model, optim=optimizer))


def as_stock(path: Path) -> Path:
    """Without a manifest it is no checkpoint of keepstep's: read it as stock DCP would."""
    return path.rename(path.parent.parent / "stock")


def save_stock(rank: int, path: str, strategy: Strategy) -> dict[str, Any]:
    model = build(strategy)
    optimizer = adamw(model)
    step(model, optimizer)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = full_state(model=model, optim=optimizer)
    dcp.save(
        {"model": model_state, "optim": optimizer_state, "sched": {"last_epoch": 7}},
        checkpoint_id=path,
    )
    return state


class Scheduler:
    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def load_stock(rank: int, path: str, strategy: Strategy) -> dict[str, Any]:
    model = build(strategy, seed=5)
    optimizer, scheduler = adamw(model), Scheduler()
    keepstep.load(path, model=model, optim=optimizer, sched=scheduler)
    assert scheduler.state == {"last_epoch": 7}
    return full_state(model=model, optim=optimizer)


@pytest.mark.parametrize(("strategy", "to_strategy"), [("fsdp", "ddp"), ("ddp", "fsdp")])
def test_keepstep_loads_a_checkpoint_that_stock_dcp_wrote(
    run_ranks: RunRanks, tmp_path: Path, strategy: Strategy, to_strategy: Strategy
) -> None:
    saved = run_ranks(2, save_stock, str(tmp_path / "stock"), strategy)[0]
    for loaded in run_ranks(3, load_stock, str(tmp_path / "stock"), to_strategy):
        assert_equal(saved, loaded)


def test_keepstep_loads_its_own_checkpoint_by_path(run_ranks: RunRanks, tmp_path: Path) -> None:
    saved = run_ranks(2, save_ours, str(tmp_path), "fsdp")[0]
    model = build("none", seed=5)
    optimizer = adamw(model)
    keepstep.load(checkpoint_in(tmp_path), model=model, optim=optimizer)
    assert_equal(saved, full_state(model=model, optim=optimizer))


def test_the_model_alone_can_be_loaded(run_ranks: RunRanks, tmp_path: Path) -> None:
    saved = run_ranks(2, save_ours, str(tmp_path), "fsdp")[0]
    model = build("none", seed=5)
    keepstep.load(checkpoint_in(tmp_path), model=model)
    loaded = full_state(model=model)
    assert_equal({name: saved[name] for name in loaded}, loaded)


def test_metadata_that_would_execute_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CorruptCheckpointError, match="does not belong in DCP metadata"):
        keepstep.load(tmp_path, model=torch.nn.Linear(1, 1))
    assert not (tmp_path / "executed").exists()


def test_our_own_metadata_pickle_is_never_read(run_ranks: RunRanks, tmp_path: Path) -> None:
    run_ranks(1, save_ours, str(tmp_path), "none")
    path = checkpoint_in(tmp_path)
    (path / ".metadata").write_bytes(b"not a pickle")
    model = build("none", seed=5)
    keepstep.load(path, model=model, optim=adamw(model))


def test_a_directory_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpointError, match="is no DCP checkpoint"):
        keepstep.load(tmp_path, model=torch.nn.Linear(1, 1))


def test_a_stock_checkpoint_of_another_model_is_explained_and_nothing_is_touched(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(1, save_stock, str(tmp_path), "none")
    model = build("none", rows=38)
    before = full_state(model=model)
    with pytest.raises(StateMismatchError) as caught:
        keepstep.load(tmp_path, model=model, optim=adamw(model), sched=Scheduler())
    assert "model.embedding.weight  shape       float32[37, 7]  float32[38, 7]" in str(caught.value)
    assert_equal(before, full_state(model=model))
