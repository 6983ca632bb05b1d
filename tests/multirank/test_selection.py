"""Checkpoints that do not fit as they are: renamed, chosen from, converted; and mere weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from models import Strategy, assert_equal, full_state, open_session
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

import keepstep
from keepstep.errors import (
    ConfigError,
    CorruptCheckpointError,
    NoCheckpointError,
    StateMismatchError,
)
from keepstep.state.optimizer import NamedOptimizer
from rank_processes import RunRanks

SHARDINGS: dict[Strategy, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "ddp": DistributedDataParallel,
    "fsdp": fully_shard,
}


class Net(nn.Module):
    """A trunk and a head; ``head`` is the head's name."""

    def __init__(self, seed: int, *, head: str = "head", classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.add_module(head, nn.Linear(4, classes))
        self._head = head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.get_submodule(self._head)(self.norm(self.trunk(inputs)))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(6, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(rank: int, uri: str, strategy: Strategy, **net: Any) -> dict[str, Any]:
    model = SHARDINGS[strategy](Net(1, **net))
    optim = AdamW(model.parameters(), lr=0.01)
    with open_session(uri) as session:
        session.track(model=model, optim=optim)
        session.restore()
        train(model, optim)
        session.tick(samples=1)
    return full_state(model=model, optim=optim)


def restore(
    rank: int, uri: str, strategy: Strategy, options: dict[str, Any], net: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], keepstep.Restored]:
    """What was built, what is there after the restore, and what the restore says."""
    dtype = net.pop("dtype", torch.float32)
    model = SHARDINGS[strategy](Net(2, **net).to(dtype))
    optim = AdamW(model.parameters(), lr=0.5)
    built = full_state(model=model, optim=optim)
    init_from = options.pop("init_from", None)
    with open_session(uri, init_from=init_from) as session:
        session.track(model=model, optim=optim)
        restored = session.restore(**options)
        after = full_state(model=model, optim=optim)
        train(model, optim)
        session.tick(samples=1)
    return built, after, restored


def renamed(state: dict[str, Any], there: str, here: str) -> dict[str, Any]:
    def value_of(name: str, value: Any) -> Any:
        if name.endswith(".params"):
            return [fqn.replace(f"{there}.", f"{here}.") for fqn in value]
        return value

    return {
        name.replace(f".{there}.", f".{here}."): value_of(name, value)
        for name, value in state.items()
    }


@pytest.mark.parametrize("strategy", ["none", "ddp", "fsdp"])
def test_a_renamed_part_comes_back_with_its_optimizer_state(
    run_ranks: RunRanks, tmp_path: Path, strategy: Strategy
) -> None:
    ranks = 1 if strategy == "none" else 2
    saved = run_ranks(ranks, save, str(tmp_path), strategy)[0]
    options = {"rename": {"model.head": "model.classifier"}}
    _, after, restored = run_ranks(
        ranks, restore, str(tmp_path), strategy, options, {"head": "classifier"}
    )[0]
    assert_equal(after, renamed(saved, "head", "classifier"))
    assert (restored.step, restored.left) == (1, ())


def test_restarting_with_the_same_options_takes_the_new_names(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(1, save, str(tmp_path), "none")
    options = {"rename": {"model.head": "model.classifier"}}
    arguments = (str(tmp_path), "none", options, {"head": "classifier"})
    for step in (1, 2, 3):
        ((_, _, restored),) = run_ranks(1, restore, *arguments)
        assert restored.step == step


def test_an_object_can_be_renamed_as_a_whole(run_ranks: RunRanks, tmp_path: Path) -> None:
    def restore_as_net(rank: int) -> dict[str, Any]:
        model = Net(2)
        optim = AdamW(model.parameters(), lr=0.5)
        with open_session(str(tmp_path)) as session:
            session.track(net=model, opt=optim)
            session.restore(rename={"model": "net", "optim": "opt"})
            return full_state(model=model, optim=optim)

    saved = run_ranks(1, save, str(tmp_path), "none")[0]
    assert_equal(run_ranks(1, restore_as_net)[0], saved)


def test_two_entries_cannot_get_one_name(run_ranks: RunRanks, tmp_path: Path) -> None:
    def restore_twice_named(rank: int) -> str:
        with (
            pytest.raises(ConfigError) as caught,
            open_session(str(tmp_path)) as session,
        ):
            session.track(model=Net(2))
            session.restore(rename={"model.trunk.weight": "model.head.weight"}, only=["model"])
        return str(caught.value)

    run_ranks(1, save, str(tmp_path), "none")
    assert "model.head.weight" in run_ranks(1, restore_twice_named)[0]


@pytest.mark.parametrize("strategy", ["none", "fsdp"])
def test_a_head_of_another_shape_stays_as_it_was_built(
    run_ranks: RunRanks, tmp_path: Path, strategy: Strategy
) -> None:
    ranks = 1 if strategy == "none" else 2
    saved = run_ranks(ranks, save, str(tmp_path), strategy)[0]
    arguments = (str(tmp_path), strategy, {"strict": "shape"}, {"classes": 3})
    built, after, restored = run_ranks(ranks, restore, *arguments)[0]
    assert restored.left == ("model.head.bias", "model.head.weight")
    for name, value in after.items():
        expected = built if ".head." in name else saved
        assert_equal({name: value}, {name: expected[name]})
    assert not any("optim.state.head" in name for name in after), "new parameters, new moments"
    assert ".optim.state.trunk.weight.exp_avg" in after


def test_a_restart_after_that_restores_the_new_head_as_well(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(1, save, str(tmp_path), "none")
    arguments = (str(tmp_path), "none", {"strict": "shape"}, {"classes": 3})
    run_ranks(1, restore, *arguments)
    ((built, after, restored),) = run_ranks(1, restore, *arguments)
    assert (restored.step, restored.left) == (2, ())
    assert not torch.equal(after[".model.head.weight"], built[".model.head.weight"])
    assert ".optim.state.head.weight.exp_avg" in after


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {},
            ["model.head.weight", "missing", "model.classifier.weight", "strict=False", "rename="],
        ),
        ({"strict": "shape"}, ["model.head.bias", "unexpected"]),
    ],
)
def test_what_is_on_one_side_only_is_refused_and_explained(
    run_ranks: RunRanks, tmp_path: Path, options: dict[str, Any], named: list[str]
) -> None:
    def refused(rank: int) -> str:
        model = Net(2, head="classifier")
        with (
            pytest.raises(StateMismatchError) as caught,
            open_session(str(tmp_path)) as session,
        ):
            session.track(model=model, optim=AdamW(model.parameters()))
            session.restore(**options)
        return str(caught.value)

    run_ranks(1, save, str(tmp_path), "none")
    message = run_ranks(1, refused)[0]
    for word in named:
        assert word in message


def test_unless_strict_is_false_and_then_the_rest_comes_back(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    saved = run_ranks(1, save, str(tmp_path), "none")[0]
    arguments = (str(tmp_path), "none", {"strict": False}, {"head": "classifier"})
    ((built, after, restored),) = run_ranks(1, restore, *arguments)
    assert "model.classifier.weight" in restored.left
    assert torch.equal(after[".model.trunk.weight"], saved[".model.trunk.weight"])
    moments = ".optim.state.trunk.weight.exp_avg"
    assert torch.equal(after[moments], saved[moments])
    assert torch.equal(after[".model.classifier.weight"], built[".model.classifier.weight"])
    assert after[".optim.param_groups.0.lr"] == 0.5, "groups of other parameters keep their options"


def test_what_is_skipped_stays_as_it_was_built(run_ranks: RunRanks, tmp_path: Path) -> None:
    saved = run_ranks(1, save, str(tmp_path), "none")[0]
    arguments = (str(tmp_path), "none", {"skip": ["model.head"]}, {})
    ((built, after, restored),) = run_ranks(1, restore, *arguments)
    assert torch.equal(after[".model.head.weight"], built[".model.head.weight"])
    assert torch.equal(after[".model.trunk.weight"], saved[".model.trunk.weight"])
    assert ".optim.state.head.weight.exp_avg" not in after
    assert restored.left == (), "it was not wanted, which is no mismatch"


def test_only_what_is_named_is_restored(run_ranks: RunRanks, tmp_path: Path) -> None:
    saved = run_ranks(1, save, str(tmp_path), "none")[0]
    arguments = (str(tmp_path), "none", {"only": ["model.*.weight"]}, {})
    ((built, after, _),) = run_ranks(1, restore, *arguments)
    for name, value in after.items():
        expected = saved if name.startswith(".model") and name.endswith(".weight") else built
        assert_equal({name: value}, {name: expected[name]})


def test_a_slip_of_the_pen_does_not_restore_nothing(run_ranks: RunRanks, tmp_path: Path) -> None:
    run_ranks(1, save, str(tmp_path), "none")
    for slip in ("modle", "model.haed", "model.trunk.w"):
        with open_session(str(tmp_path)) as session:
            session.track(model=Net(2))
            with pytest.raises(ConfigError, match=f"only= names '{slip}'"):
                session.restore(only=[slip])


@pytest.mark.parametrize(
    "options",
    [{"only": ["optim.param_groups.0.lr"]}, {"skip": ["optim.param_groups.*.params"]}],
)
def test_options_without_the_parameters_of_their_group_are_refused(
    run_ranks: RunRanks, tmp_path: Path, options: dict[str, Any]
) -> None:
    run_ranks(1, save, str(tmp_path), "none")
    model = Net(2)
    optim = AdamW(model.parameters(), lr=0.5)
    built = full_state(model=model, optim=optim)
    with (
        open_session(str(tmp_path)) as session,
        pytest.raises(ConfigError, match=r"leave out optim\.param_groups\.0\.params"),
    ):
        session.track(model=model, optim=optim)
        session.restore(**options)
    assert_equal(full_state(model=model, optim=optim), built)


@pytest.mark.parametrize(
    ("options", "lr"),
    [
        ({"skip": ["optim.param_groups.*.lr"]}, 0.5),
        ({"only": ["optim.param_groups.*.lr", "optim.param_groups.*.params"]}, 0.01),
    ],
)
def test_with_them_single_options_are_chosen_from(
    run_ranks: RunRanks, tmp_path: Path, options: dict[str, Any], lr: float
) -> None:
    run_ranks(1, save, str(tmp_path), "none")
    ((_, after, _),) = run_ranks(1, restore, str(tmp_path), "none", options, {})
    assert after[".optim.param_groups.0.lr"] == lr


def test_another_dtype_is_converted_on_request_alone(run_ranks: RunRanks, tmp_path: Path) -> None:
    def refused(rank: int) -> str:
        model = Net(2).bfloat16()
        with (
            pytest.raises(StateMismatchError) as caught,
            open_session(str(tmp_path)) as session,
        ):
            session.track(model=model)
            session.restore(only=["model"])
        return str(caught.value)

    saved = run_ranks(1, save, str(tmp_path), "none")[0]
    assert "cast=True" in run_ranks(1, refused)[0]
    ((_, after, _),) = run_ranks(1, restore_cast, str(tmp_path))
    for name, value in after.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not name.endswith(".step"):
            assert value.dtype == torch.bfloat16, name
            assert torch.equal(value, saved[name].bfloat16()), name


def test_to_convert_weights_no_optimizer_state_is_made_anew(
    run_ranks: RunRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ranks(1, save, str(tmp_path), "none")
    made: list[tuple[str | int, ...]] = []
    destinations = NamedOptimizer.destinations

    def counted(optimizer: NamedOptimizer, tensors: Any) -> Any:
        found = destinations(optimizer, tensors)
        made.extend(found)
        return found

    monkeypatch.setattr(NamedOptimizer, "destinations", counted)
    restore_cast(0, str(tmp_path))
    assert made
    assert len(made) == len(set(made))


def restore_cast(rank: int, uri: str) -> tuple[None, dict[str, Any], keepstep.Restored]:
    model = Net(2).bfloat16()
    optim = AdamW(model.parameters())
    with open_session(uri) as session:
        session.track(model=model, optim=optim)
        restored = session.restore(cast=True)
        after = full_state(model=model, optim=optim)
        model(torch.randn(6, 3, dtype=torch.bfloat16)).square().mean().backward()
        optim.step()
    return None, after, restored


def write_source(kind: str, directory: Path, state: dict[str, Tensor]) -> str:
    """Weights as other tools write them."""
    path = directory / kind
    match kind:
        case "tutorial":
            content = {
                "epoch": 3,
                "model_state_dict": state,
                "optimizer_state_dict": {},
                "loss": 1.0,
            }
            torch.save(content, path)
        case "bare":
            torch.save(state, path)
        case "wrapped":
            torch.save({f"module._orig_mod.{name}": t for name, t in state.items()}, path)
        case "named":
            torch.save({"model": state, "other": 1}, path)
        case "dcp":
            dcp.save({"model": state, "step": 7}, checkpoint_id=path)
        case "bare dcp":
            dcp.save(state, checkpoint_id=path)
        case "safetensors":
            from safetensors.torch import save_file

            path = directory / "weights.safetensors"
            save_file(state, path)
    return str(path)


SOURCES = ["tutorial", "bare", "wrapped", "named", "dcp", "bare dcp", "safetensors"]


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [*(("none", kind) for kind in SOURCES), ("fsdp", "tutorial"), ("fsdp", "bare dcp")],
)
def test_a_fresh_start_takes_weights_from_elsewhere(
    run_ranks: RunRanks, tmp_path: Path, kind: str, strategy: Strategy
) -> None:
    state = Net(7).state_dict()
    source = write_source(kind, tmp_path, state)
    options = {"init_from": source}
    ranks = 1 if strategy == "none" else 2
    for _, after, restored in run_ranks(
        ranks, restore, str(tmp_path / "run"), strategy, options, {}
    ):
        for name, tensor in state.items():
            assert torch.equal(after[f".model.{name}"], tensor), name
        assert after[".optim.param_groups.0.lr"] == 0.5
        assert (restored.fresh, restored.step, restored.initialized_from) == (True, 0, source)


@pytest.mark.parametrize("which", ["run", "checkpoint"])
def test_or_from_another_run(run_ranks: RunRanks, tmp_path: Path, which: str) -> None:
    saved = run_ranks(2, save, str(tmp_path / "other"), "fsdp")[0]
    source = tmp_path / "other"
    if which == "checkpoint":
        (source,) = (source / "steps").iterdir()
    arguments = (str(tmp_path / "run"), "ddp", {"init_from": str(source)}, {})
    _, after, restored = run_ranks(2, restore, *arguments)[0]
    for name in after:
        if name.startswith(".model"):
            assert_equal({name: after[name]}, {name: saved[name]})
    assert restored.step == 0


def test_options_apply_to_weights_from_elsewhere(run_ranks: RunRanks, tmp_path: Path) -> None:
    state = Net(7, head="old", classes=9).state_dict()
    source = write_source("tutorial", tmp_path, state)
    options = {"init_from": source, "rename": {"model.old": "model.head"}, "strict": "shape"}
    ((built, after, restored),) = run_ranks(
        1, restore, str(tmp_path / "run"), "none", options, {"classes": 3}
    )
    assert restored.left == ("model.head.bias", "model.head.weight")
    assert torch.equal(after[".model.trunk.weight"], state["trunk.weight"])
    assert torch.equal(after[".model.head.weight"], built[".model.head.weight"])


def test_a_history_is_never_overridden(run_ranks: RunRanks, tmp_path: Path) -> None:
    saved = run_ranks(1, save, str(tmp_path / "run"), "none")[0]
    source = write_source("bare", tmp_path, Net(7).state_dict())
    arguments = (str(tmp_path / "run"), "none", {"init_from": source}, {})
    ((_, after, restored),) = run_ranks(1, restore, *arguments)
    assert_equal(after, saved)
    assert (restored.step, restored.initialized_from) == (1, None)


def test_nothing_is_claimed_where_weights_do_not_fit(run_ranks: RunRanks, tmp_path: Path) -> None:
    def refused(rank: int, source: str, error: type[Exception]) -> str:
        with (
            pytest.raises(error) as caught,
            open_session(str(tmp_path / "run"), init_from=source) as session,
        ):
            session.track(model=Net(2))
            session.restore()
        return str(caught.value)

    misfit = write_source("bare", tmp_path, Net(7, classes=9).state_dict())
    (tmp_path / "rubbish").write_bytes(b"rubbish" * 100)
    torch.save({"a": 1, "b": {"c": 2}}, tmp_path / "empty")
    assert "model.head.weight" in run_ranks(1, refused, misfit, StateMismatchError)[0]
    rubbish = run_ranks(1, refused, str(tmp_path / "rubbish"), CorruptCheckpointError)[0]
    assert "rubbish" in rubbish
    assert "a, b" in run_ranks(1, refused, str(tmp_path / "empty"), ConfigError)[0]
    assert "absent" in run_ranks(1, refused, str(tmp_path / "absent"), NoCheckpointError)[0]
    assert not (tmp_path / "run" / "generations").exists()
