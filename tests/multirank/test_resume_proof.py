"""What a resume proves: that everything which was read has also arrived, and where it belongs."""

import logging
import secrets
from pathlib import Path
from typing import Any

import pytest
import torch
from models import adamw, build, open_session, step
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.optim.lr_scheduler import StepLR

from keepstep.checkpoint.planner import LoadPlanner
from keepstep.data import Loader
from keepstep.errors import KeepstepError
from keepstep.state import app_state, optimizer
from rank_processes import RunRanks


def train(rank: int, uri: str, strategy: Any = "none") -> str | None:
    """One more step; the error of the restore, if it fails."""
    model = build(strategy, seed=rank + 1)
    optim = adamw(model)
    sched = StepLR(optim, 3)
    loader = Loader(range(50), global_size=6)
    try:
        with open_session(uri) as session:
            session.track(model=model, optim=optim, sched=sched, data=loader)
            session.restore()
            list(next(loader))
            step(model, optim)
            sched.step()
            session.tick(samples=6)
    except KeepstepError as error:
        return f"{error.exit_code:d} {error}"
    return None


def test_without_sabotage_nothing_is_found(tmp_path: Path) -> None:
    assert [train(0, str(tmp_path)) for _ in range(3)] == [None, None, None]


def test_optimizer_state_that_is_lost_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(0, str(tmp_path))
    monkeypatch.setattr(optimizer.NamedOptimizer, "load_state_dict", lambda *_: None)
    assert "optim.state.embedding.weight.exp_avg was not restored" in str(train(0, str(tmp_path)))


def test_a_parameter_from_the_wrong_shard_is_named(
    run_ranks: RunRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_ranks(2, train, str(tmp_path), "fsdp") == [None, None]

    def swapped(self: LoadPlanner, item: Any) -> Any:
        """What is meant for the first rows goes to the last ones."""
        tensor = resolve(self, item)
        return tensor.flip(0) if item.dest_index.fqn == "model.first.weight" else tensor

    resolve = LoadPlanner.resolve_tensor
    monkeypatch.setattr(LoadPlanner, "resolve_tensor", swapped)
    errors = run_ranks(2, train, str(tmp_path), "fsdp")
    assert len(set(errors)) == 1
    assert "model.first.weight was not restored" in errors[0]


def resume_with_a_broken_replica(rank: int, uri: str) -> str | None:
    """On two replicas of all shards, of which the second is loaded wrong."""

    def lost_on_the_second(self: LoadPlanner, item: Any) -> Any:
        tensor = resolve(self, item)
        if rank == 1 and item.dest_index.fqn == "model.first.weight":
            return torch.empty_like(tensor)
        return tensor

    resolve = LoadPlanner.resolve_tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoadPlanner, "resolve_tensor", lost_on_the_second)
        return train(rank, uri, "hsdp")


def test_a_replica_of_a_shard_that_is_not_restored_is_named(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    assert run_ranks(2, train, str(tmp_path), "hsdp") == [None, None]
    errors = run_ranks(2, resume_with_a_broken_replica, str(tmp_path))
    assert len(set(errors)) == 1
    assert "model.first.weight was not restored: ranks 0 and 1 hold its part at [0, 0]" in errors[0]


def train_tensor_parallel(rank: int, uri: str) -> int:
    """One more step of two replicas of a layer in two shards; the step that was resumed from.

    The layer knows the mesh of its shards only: to it, each replica is the only one.
    """
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    model = parallelize_module(nn.Linear(8, 8, bias=False), mesh["tp"], ColwiseParallel())
    optim = torch.optim.AdamW(model.parameters())
    with open_session(uri) as session:
        session.track(model=model, optim=optim)
        restored = session.restore()
        model(torch.ones(2, 8)).sum().backward()
        optim.step()
        session.tick()
    return restored.step


def test_replicas_that_know_nothing_of_each_other_resume(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    assert run_ranks(4, train_tensor_parallel, str(tmp_path)) == [0] * 4
    assert run_ranks(4, train_tensor_parallel, str(tmp_path)) == [1] * 4


def test_generators_that_are_one_draw_off_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(0, str(tmp_path))
    load = app_state.load_rng_state_dict

    def one_off(state: dict[str, Any]) -> None:
        load(state)
        torch.rand(1)

    monkeypatch.setattr(app_state, "load_rng_state_dict", one_off)
    assert "ranks.00000.rng.torch was not restored" in str(train(0, str(tmp_path)))


def test_a_device_that_was_not_there_gets_a_generator_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train(0, str(tmp_path))
    here = app_state.rng_state_dict
    on_device = torch.Generator()  # stands for that of a CUDA device
    derive = app_state.derive_rng

    def with_a_device() -> dict[str, Any]:
        return here() | {"cuda": on_device.get_state()}

    def derive_there(**known: int) -> None:
        derive(**known)
        on_device.manual_seed(torch.initial_seed())

    monkeypatch.setattr(app_state, "rng_state_dict", with_a_device)
    monkeypatch.setattr(app_state, "derive_rng", derive_there)
    before = on_device.get_state()
    with caplog.at_level(logging.WARNING):
        assert train(0, str(tmp_path)) is None
    assert "no random generator of cuda: it is derived from (seed, rank, step)" in caplog.text
    assert not torch.equal(on_device.get_state(), before)


def test_a_data_position_that_is_one_off_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(0, str(tmp_path))
    load = Loader.load_state_dict

    def one_off(self: Loader, state: dict[str, Any]) -> None:
        key = next(key for key, value in state.items() if value == 6)
        load(self, state | {key: 7})

    monkeypatch.setattr(Loader, "load_state_dict", one_off)
    error = str(train(0, str(tmp_path)))
    assert "data." in error
    assert "was not restored" in error


def test_an_option_that_is_lost_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(0, str(tmp_path))
    monkeypatch.setattr(optimizer.NamedOptimizer, "_load_options", lambda *_: None)
    monkeypatch.setattr("models.AdamW", lambda groups, **_: torch.optim.AdamW(groups, lr=9.0))
    assert "optim.param_groups.0.betas was not restored" in str(train(0, str(tmp_path)))


def test_a_schedule_that_is_lost_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        train(0, str(tmp_path))
    monkeypatch.setattr(StepLR, "load_state_dict", lambda *_: None)
    assert "sched." in str(train(0, str(tmp_path)))


def test_a_strangers_object_is_only_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Forgetful:
        def state_dict(self) -> dict[str, str]:
            return {"told": secrets.token_hex()}

        def load_state_dict(self, state: dict[str, str]) -> None:
            pass

    for _ in range(2):
        with open_session(str(tmp_path)) as session, caplog.at_level(logging.WARNING):
            session.track(thing=Forgetful()).restore()
            session.tick()
    assert "thing.told: after load_state_dict()" in caplog.text
