"""What wrappers, devices and less common objects do to state, and how it still comes back."""

import io
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from models import adamw, assert_equal, build, full_state, open_session, sgd, step
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, SGD, Adafactor, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

import keepstep
from keepstep.checkpoint.planner import LoadPlanner, serialize_value
from keepstep.errors import ConfigError, StateMismatchError
from keepstep.state.app_state import AppState
from keepstep.state.optimizer import NamedOptimizer
from keepstep.state.values import on_host
from rank_processes import RunRanks


def save(uri: Path, **tracked: Any) -> None:
    with open_session(str(uri)) as session:
        session.track(**tracked)
        session.restore()
        session.save()


def restore(uri: Path, **tracked: Any) -> None:
    with open_session(str(uri), resume="must") as session:
        session.track(**tracked)
        session.restore()


def state_of(**tracked: Any) -> AppState:
    state = AppState(rank=0, seed=0)
    state.track(tracked)
    return state


def devices_after_load(
    optimizer: Optimizer, shapes: Mapping[str, tuple[int, ...]], **options: Any
) -> dict[str, str]:
    """Where the state of an optimizer's one parameter is once it was loaded, by name."""
    parameter = optimizer.param_groups[0]["params"][0]
    named = NamedOptimizer("optim", optimizer, {parameter: "w"})
    found = named.destinations({("state", "w", k): (v, torch.float32) for k, v in shapes.items()})
    state = {path[2]: tensor for path, tensor in found.items()}
    groups = [{"params": ["w"], **options}]
    named.load_state_dict({"state": {"w": state}, "param_groups": groups})
    return {name: tensor.device.type for name, tensor in optimizer.state[parameter].items()}


class TestDevices:
    """Parameters on "meta" stand for those on an accelerator: neither is the host."""

    def test_state_of_a_scalar_parameter_is_where_the_parameter_is(self) -> None:
        parameter = nn.Parameter(torch.empty((), device="meta"))
        devices = devices_after_load(AdamW([parameter]), {"step": (), "exp_avg": ()})
        assert devices == {"step": "cpu", "exp_avg": "meta"}

    def test_state_of_another_shape_is_where_the_parameter_is(self) -> None:
        parameter = nn.Parameter(torch.empty(3, 4, device="meta"))
        shapes = {"step": (), "row_var": (3, 1), "col_var": (1, 4)}
        devices = devices_after_load(Adafactor([parameter]), shapes)
        assert devices == {"step": "cpu", "row_var": "meta", "col_var": "meta"}

    @pytest.mark.parametrize("option", ["fused", "capturable"])
    def test_options_that_came_back_decide_where_the_step_counter_is(self, option: str) -> None:
        parameter = nn.Parameter(torch.empty(2, device="meta"))
        devices = devices_after_load(AdamW([parameter]), {"step": ()}, **{option: True})
        assert devices == {"step": "meta"}

    def test_a_step_counter_goes_to_the_host_with_options_of_the_host(self) -> None:
        parameter = nn.Parameter(torch.empty(2, device="meta"))
        optimizer = AdamW([parameter])
        optimizer.param_groups[0]["capturable"] = True
        assert devices_after_load(optimizer, {"step": ()}, capturable=False) == {"step": "cpu"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Holder(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = net  # the very name that DDP uses, here the user's own

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


WRAPPINGS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Holder(Net()),
    "compiled ddp": lambda: torch.compile(DistributedDataParallel(Holder(Net())), backend="eager"),
    "ddp of compiled": lambda: DistributedDataParallel(
        torch.compile(Holder(Net()), backend="eager")
    ),
    "ddp within": lambda: Holder(DistributedDataParallel(Net())),
}


def train_wrapped(rank: int, uri: str, wrapping: str) -> dict[str, Any]:
    """Take a step after what was restored; state before that and after it."""
    torch.manual_seed(0)
    model = WRAPPINGS[wrapping]()
    optimizer = AdamW(model.parameters())
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        before = full_state(model=model, optim=optimizer)
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        session.tick()
    names = state_of(model=model, optim=optimizer).optimizer_groups()["optim"]
    assert names == [frozenset(get_model_state_dict(model))]
    return {"before": before, "after": full_state(model=model, optim=optimizer)}


def _start_method(wrapping: str) -> str:
    # The compiler has threads of its own: in a fork of a process with other tests behind it,
    # it may die.
    return "spawn" if "compiled" in wrapping else "fork"


@pytest.mark.parametrize(
    "wrapping",
    [
        pytest.param(name, marks=[pytest.mark.long] if name == "ddp of compiled" else [])
        for name in list(WRAPPINGS)[1:]
    ],
)
def test_wrappers_change_no_name(run_ranks: RunRanks, tmp_path: Path, wrapping: str) -> None:
    states = [
        run_ranks(1, train_wrapped, str(tmp_path), name, start_method=_start_method(name))[0]
        for name in (wrapping, "plain", wrapping)
    ]
    assert ".optim.state.module.layer.weight.exp_avg" in states[0]["after"]
    for state, following in pairwise(states):
        assert_equal(state["after"], following["before"])


class TestNames:
    def test_another_module_renames_no_optimizer_state(self, tmp_path: Path) -> None:
        model = build("none")
        optimizer = adamw(model)
        step(model, optimizer)
        names = state_of(model=model, optim=optimizer).optimizer_groups()
        average = build("none", seed=2)
        for tracked in ({"ema": average, "model": model}, {"model": model, "ema": average}):
            assert state_of(**tracked, optim=optimizer).optimizer_groups() == names

    def test_an_optimizer_of_two_modules_has_the_names_of_both(self) -> None:
        one, other = Net(), Net()
        optimizer = SGD([*one.parameters(), *other.parameters()])
        (names,) = state_of(one=one, other=other, optim=optimizer).optimizer_groups()["optim"]
        assert {"one.layer.weight", "other.layer.weight"} < names

    def test_a_module_of_flat_parameters_is_refused(self) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            model = nn.Sequential(FullyShardedDataParallel(Net(), device_id=torch.device("cpu")))
            with pytest.raises(ConfigError, match=r"'model'.*fully_shard"):
                state_of(model=model)
        finally:
            dist.destroy_process_group()


class Scaled(nn.Module):
    """A module that keeps more than parameters and buffers, as quantized layers do."""

    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def build_scaled(strategy: str, extra: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), Scaled(extra))
    if strategy == "fsdp":
        return fully_shard(model)
    return DistributedDataParallel(model) if strategy == "ddp" else model


def save_scaled(rank: int, uri: Path, strategy: str) -> None:
    save(uri, model=build_scaled(strategy, {"scale": torch.tensor(2.0)}))


def restore_scaled(rank: int, uri: Path, strategy: str) -> Any:
    model = build_scaled(strategy, {})
    restore(uri, model=model)
    (scaled,) = (part for part in model.modules() if isinstance(part, Scaled))
    return scaled.extra


class TestExtraState:
    @pytest.mark.parametrize(
        ("saved", "initial"),
        [
            (torch.tensor([1.0, 2.0]), torch.zeros(3)),
            ({"scale": torch.tensor(2.0), 3: (1, "a")}, {}),
            (7, 0),
        ],
        ids=["tensor", "dict", "int"],
    )
    @pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential], ids=["root", "child"])
    def test_of_any_type_comes_back(
        self, tmp_path: Path, saved: Any, initial: Any, wrap: Callable[[nn.Module], nn.Module]
    ) -> None:
        save(tmp_path, model=wrap(Scaled(saved)))
        scaled = Scaled(initial)
        model = wrap(scaled)
        restore(tmp_path, model=model)
        if isinstance(saved, Tensor):
            assert torch.equal(scaled.extra, saved)
        else:
            assert scaled.extra == saved

    @pytest.mark.parametrize(
        ("strategy", "other"), [("fsdp", "ddp"), ("ddp", "fsdp"), ("none", "fsdp")]
    )
    def test_comes_back_whatever_the_wrapper(
        self, run_ranks: RunRanks, tmp_path: Path, strategy: str, other: str
    ) -> None:
        run_ranks(1 if strategy == "none" else 2, save_scaled, tmp_path, strategy)
        assert run_ranks(2, restore_scaled, tmp_path, other) == [{"scale": torch.tensor(2.0)}] * 2

    def test_that_stock_dcp_wrote_as_a_tensor_is_explained(self, tmp_path: Path) -> None:
        dcp.save({"model": Scaled(torch.ones(1)).state_dict()}, checkpoint_id=tmp_path)
        with pytest.raises(StateMismatchError, match=r"_extra_state +kind +float32\[1\] +value"):
            keepstep.load(tmp_path, model=Scaled(torch.ones(1)))

    def test_that_could_execute_code_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"model\._extra_state"):
            save(tmp_path, model=Scaled(Path("x")))


class PassedOn:
    """An optimizer as any other object: kept whole."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def lbfgs(model: nn.Module, steps: int = 0) -> LBFGS:
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=2)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().sum()
        loss.backward()
        return loss.item()

    for _ in range(steps):
        optimizer.step(closure)
    return optimizer


class Sharpness(Optimizer):
    """As implementations of SAM are written: groups are shared with the inner one, state is not."""

    def __init__(self, kind: type[Optimizer], parameters: Any) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base_optimizer = kind(self.param_groups)
        self.param_groups = self.base_optimizer.param_groups


class Both(Optimizer):
    """An optimizer for each kind of parameter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {})
        self.several = [SGD([parameter]) for parameter in model.parameters()]


class Passing(Optimizer):
    """As accelerate wraps an optimizer: everything is the inner one's."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.param_groups = inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def step(self, closure: Any = None) -> None:
        self.inner.step(closure)


class TestOptimizerState:
    def test_that_is_not_flat_is_refused_with_a_way_out(self, tmp_path: Path) -> None:
        model = Net()
        with pytest.raises(ConfigError, match=r"'optim' \(LBFGS\) keeps 'old_dirs' as a list"):
            save(tmp_path / "refused", model=model, optim=lbfgs(model, steps=2))

    def test_that_is_not_flat_comes_back_through_an_object_that_passes_it_on(
        self, tmp_path: Path
    ) -> None:
        model = Net()
        optimizer = lbfgs(model, steps=2)
        save(tmp_path, model=model, optim=PassedOn(optimizer))
        again = Net()
        loaded = lbfgs(again)
        restore(tmp_path, model=again, optim=PassedOn(loaded))
        there, here = (o.state_dict()["state"][0] for o in (optimizer, loaded))
        assert here["n_iter"] == there["n_iter"]
        assert len(there["old_dirs"]) > 0
        for one, other in zip(there["old_dirs"], here["old_dirs"], strict=True):
            assert torch.equal(one, other)

    def test_that_is_kept_by_an_inner_optimizer_is_refused(self) -> None:
        model = Net()
        for wrapper in (Sharpness(SGD, model.parameters()), Both(model)):
            kind = type(wrapper).__name__
            with pytest.raises(ConfigError, match=rf"'optim': a {kind} keeps state .* \(SGD\)"):
                state_of(model=model, optim=wrapper)
        state_of(model=model, optim=Sharpness(SGD, model.parameters()).base_optimizer)

    def test_that_a_wrapper_shares_with_an_inner_optimizer_is_taken(self, tmp_path: Path) -> None:
        saved, loaded = Net(), Net()
        optimizer = Passing(adamw(saved))
        saved(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        save(tmp_path, model=saved, optim=optimizer)
        again = Passing(adamw(loaded))
        restore(tmp_path, model=loaded, optim=again)
        assert_equal(
            full_state(model=saved, optim=optimizer), full_state(model=loaded, optim=again)
        )
        assert len(again.inner.state) == 2

    def test_of_zero_redundancy_is_refused(self) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            model = Net()
            optimizer = ZeroRedundancyOptimizer(model.parameters(), AdamW)
            message = r"ZeroRedundancyOptimizer keeps state .*\.optim \(AdamW\).*fully_shard"
            with pytest.raises(ConfigError, match=message):
                state_of(model=model, optim=optimizer)
        finally:
            dist.destroy_process_group()

    def test_beside_state_and_groups_is_refused(self) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            model = Net()
            averager = PeriodicModelAverager(period=4)
            optimizer = PostLocalSGDOptimizer(SGD(model.parameters()), averager)
            with pytest.raises(ConfigError, match="PostLocalSGDOptimizer holds step besides"):
                state_of(model=model, optim=optimizer)
        finally:
            dist.destroy_process_group()

    def test_that_belongs_to_no_parameter_is_refused(self) -> None:
        model = Net()
        optimizer = SGD(model.parameters())
        optimizer.state["rounds"] = 3  # type: ignore[index]
        with pytest.raises(ConfigError, match="state under 'rounds' instead of a parameter"):
            state_of(model=model, optim=optimizer).common_dict()

    def test_sharded_unlike_its_parameter_is_refused(self) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            model = fully_shard(nn.Linear(4, 3, bias=False), mesh=init_device_mesh("cpu", (1,)))
            weight = model.weight
            optimizer = SGD([weight])
            fits = {"square": torch.zeros_like(weight), "rows": torch.zeros(3, 1)}
            optimizer.state[weight] = fits
            state_of(model=model, optim=optimizer).common_dict()
            for name, value in (("rows", torch.zeros_like(weight[:, :1])), ("norm", weight.norm())):
                optimizer.state[weight] = fits | {name: value}
                message = rf"'optim' \(SGD\) keeps '{name}' of weight as a DTensor of shape \("
                with pytest.raises(ConfigError, match=message):
                    state_of(model=model, optim=optimizer).common_dict()
        finally:
            dist.destroy_process_group()

    def test_of_another_class_is_explained_and_nothing_is_changed(self, tmp_path: Path) -> None:
        model = build("none")
        save(tmp_path, model=model, optim=adamw(model))
        before = full_state(model=model)
        optimizer = sgd(model)
        with pytest.raises(StateMismatchError) as caught:
            restore(tmp_path, model=model, optim=optimizer)
        assert "optim.param_groups.0  options" in str(caught.value)
        assert "betas, capturable" in str(caught.value)
        assert "dampening, momentum, nesterov" in str(caught.value)
        assert_equal(before, full_state(model=model))
        assert "betas" not in optimizer.param_groups[0]

    def test_from_before_an_option_was_added_is_taken(self, tmp_path: Path) -> None:
        model = Net()
        save(tmp_path, model=model, optim=Adam(model.parameters(), lr=0.5))
        optimizer = Adam(model.parameters())
        optimizer.param_groups[0]["newer"] = True
        restore(tmp_path, model=model, optim=optimizer)
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[0]["newer"] is True

    def test_from_under_a_scheduler_is_taken_without_one(self, tmp_path: Path) -> None:
        model = Net()
        optimizer = Adam(model.parameters())
        OneCycleLR(optimizer, 0.1, total_steps=9)
        save(tmp_path, model=model, optim=optimizer)
        restore(tmp_path, model=model, optim=Adam(model.parameters()))

    def test_empty_groups_keep_their_own_options(self, tmp_path: Path) -> None:
        def two_empty(lrs: tuple[float, float, float], model: nn.Module) -> Optimizer:
            members = [[], list(model.parameters()), []]
            return SGD([{"params": p, "lr": lr} for p, lr in zip(members, lrs, strict=True)])

        model = Net()
        save(tmp_path, model=model, optim=two_empty((0.1, 0.2, 0.3), model))
        optimizer = two_empty((0.0, 0.0, 0.0), model)
        restore(tmp_path, model=model, optim=optimizer)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.3]

    def test_groups_in_another_order_keep_their_own_options(self, tmp_path: Path) -> None:
        model = Net()
        weight, bias = model.parameters()
        groups: list[dict[str, Any]] = [
            {"params": [weight], "lr": 0.1},
            {"params": [bias], "lr": 0.2},
        ]
        save(tmp_path, model=model, optim=SGD([*groups, {"params": [], "lr": 0.3}]))
        groups = [{"params": []}, {"params": [bias]}, {"params": [weight]}]
        optimizer = SGD(groups)
        restore(tmp_path, model=model, optim=optimizer)
        assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.2, 0.1]

    def test_of_one_empty_group_less_is_explained(self, tmp_path: Path) -> None:
        model = Net()
        groups: list[dict[str, Any]] = [{"params": model.parameters()}, {"params": []}]
        save(tmp_path, model=model, optim=SGD([*groups, {"params": []}]))
        fewer: list[dict[str, Any]] = [{"params": model.parameters()}, {"params": []}]
        with pytest.raises(StateMismatchError, match="groups of 2, 0, 0"):
            restore(tmp_path, model=model, optim=SGD(fewer))


class Part:
    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


class OnDevice(Tensor):
    """Stands for a tensor on an accelerator: it can be told whether it was moved."""

    device = torch.device("cuda", 0)

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.as_subclass(Tensor)


class TestValues:
    def test_tensors_are_moved_to_the_host_and_containers_keep_their_types(self) -> None:
        on_device = torch.ones(2).as_subclass(OnDevice)
        ordered = OrderedDict(b=on_device, a=[on_device, (on_device, 1)])
        ordered._metadata = {"version": 2}  # type: ignore[attr-defined]  # as nn.Module's has
        moved = on_host(ordered)
        assert isinstance(moved, OrderedDict)
        assert list(moved) == ["b", "a"]
        assert moved._metadata == {"version": 2}  # type: ignore[attr-defined]
        assert isinstance(moved["a"][1], tuple)
        assert [type(t) for t in (moved["b"], moved["a"][0], moved["a"][1][0])] == [Tensor] * 3
        assert type(ordered["b"]) is OnDevice

    def test_of_a_device_that_is_not_here_are_loaded_on_the_host(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        value = {"scale": torch.tensor(2.0)}
        content = io.BytesIO()
        with monkeypatch.context() as patch:
            # Tags storages as another machine would that has the device.
            tag = (0, lambda storage: "cuda:0", lambda storage, location: None)
            registry = [tag, *torch.serialization._package_registry]
            patch.setattr(torch.serialization, "_package_registry", registry)
            torch.save(value, content)
        assert serialize_value("part", content) == content.getvalue()
        template: dict[str, Any] = {"part": None}
        planner = LoadPlanner()
        metadata = Metadata({"part": BytesStorageMetadata()})
        planner.set_up_planner(template, metadata, is_coordinator=True)
        (item,) = planner.create_local_plan().items
        content.seek(0)
        planner.load_bytes(item, content)
        assert template["part"] == value

    def test_on_a_device_whose_generator_is_not_saved_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = Net()
        model.register_buffer("seen", torch.ones(2).as_subclass(OnDevice))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        message = r"'model' has tensors on cuda:0.*current device is cuda:3.*set_device\(0\)"
        with pytest.raises(ConfigError, match=message):
            save(tmp_path, model=model)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        state_of(model=model).check_device()

    @pytest.mark.parametrize(
        ("state", "name"),
        [({"seen": {"a", "b"}}, r"part\.seen "), ({"x": [(1, {2})]}, r"part\.x\.0\.1 ")],
    )
    def test_sets_are_refused_by_name(self, tmp_path: Path, state: Any, name: str) -> None:
        with pytest.raises(ConfigError, match=name + "is a set.*sorted list"):
            save(tmp_path, part=Part(state))

    def test_that_are_sums_yet_to_be_made_are_refused(self, tmp_path: Path) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            total = distribute_tensor(
                torch.ones(4), init_device_mesh("cpu", (1,)), [Shard(0)]
            ).sum()
            model = Net()
            model.register_buffer("total", total)
            with pytest.raises(ConfigError, match=r"model.total is a partial tensor.*full_tensor"):
                save(tmp_path, model=model)
        finally:
            dist.destroy_process_group()

    @pytest.mark.parametrize("dtype", [torch.int4, torch.uint2])
    def test_below_a_byte_are_refused(self, tmp_path: Path, dtype: torch.dtype) -> None:
        model = Net()
        model.register_buffer("codes", torch.empty(4, dtype=dtype))
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(ConfigError, match=rf"model\.codes is a sub-byte {name} tensor.*uint8"):
            save(tmp_path, model=model)

    def test_frozen_sets_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="part"):
            save(tmp_path, part=Part({"seen": frozenset("ab")}))


def save_and_resume_with_another_default_device(rank: int, uri: str) -> None:
    """As after ``torch.set_default_device("cuda")``, with another device that is no host."""
    model = build("ddp")
    optimizer = adamw(model)
    step(model, optimizer)
    expected = full_state(model=model, optim=optimizer)
    other = build("ddp", seed=99)
    other_optimizer = adamw(other)
    torch.set_default_device("meta")
    try:
        save(Path(uri), model=model, optim=optimizer)
        restore(Path(uri), model=other, optim=other_optimizer)
    finally:
        torch.set_default_device(None)
    assert_equal(expected, full_state(model=other, optim=other_optimizer))


def test_the_default_device_does_not_matter(run_ranks: RunRanks, tmp_path: Path) -> None:
    run_ranks(2, save_and_resume_with_another_default_device, str(tmp_path))
