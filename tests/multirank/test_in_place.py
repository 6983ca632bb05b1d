"""What of a module can be loaded into its own memory; what cannot is refused by name, and early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Strategy, adamw, build, open_session, step
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

import keepstep
from keepstep.errors import ConfigError
from rank_processes import RunRanks

Hook = Callable[..., Any]


def save(uri: Path, **tracked: Any) -> str:
    """Returns the checkpoint's directory."""
    with open_session(str(uri)) as session:
        session.track(**tracked)
        session.restore()
        session.tick(loss=0.5)
        name = session.save().committed().name
    return str(uri / "steps" / name)


def restore(uri: Path, options: dict[str, Any] | None = None, **tracked: Any) -> None:
    with open_session(str(uri), resume="must") as session:
        session.track(**tracked)
        session.restore(**options or {})


class Derived(nn.Module):
    """Computes with a tensor that a hook derives from its weight after every load."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 3), value))
        self.refreshed = 0
        self.register_load_state_dict_post_hook(Derived.refresh)
        self.refresh()

    def refresh(self, keys: Any = ((), ())) -> None:
        assert not any(keys), "as if everything had been there"
        self.square = self.weight.detach().square()
        self.refreshed += 1

    def get_extra_state(self) -> int:
        return 7

    def set_extra_state(self, state: Any) -> None:
        self.refreshed *= state


class TestHooksOfALoad:
    def test_run_once_after_a_resume_and_after_the_extra_state(self, tmp_path: Path) -> None:
        save(tmp_path, model=nn.Sequential(Derived(3.0)))
        derived = Derived(1.0)
        restore(tmp_path, model=nn.Sequential(derived))
        assert torch.equal(derived.square, torch.full((4, 3), 9.0))
        assert derived.refreshed == 1 * 7 + 1

    def test_run_after_keepstep_load(self, tmp_path: Path) -> None:
        checkpoint = save(tmp_path, model=nn.Sequential(Derived(3.0)))
        derived = Derived(1.0)
        keepstep.load(checkpoint, model=nn.Sequential(derived))
        assert torch.equal(derived.square, torch.full((4, 3), 9.0))

    def test_run_after_load_best(self, tmp_path: Path) -> None:
        derived = Derived(3.0)
        with open_session(str(tmp_path)) as session:
            session.track(model=derived)
            session.restore()
            session.tick(loss=0.5)
            session.save().committed()
            with torch.no_grad():
                derived.weight.fill_(5.0)
            session.load_best("loss:min")
        assert torch.equal(derived.square, torch.full((4, 3), 9.0))

    def test_do_not_run_where_nothing_was_loaded(self, tmp_path: Path) -> None:
        save(tmp_path, model=nn.Linear(2, 2), other=Derived(3.0))
        derived = Derived(1.0)
        restore(tmp_path, {"only": ["model"]}, model=nn.Linear(2, 2), other=derived)
        assert derived.refreshed == 1

    @pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
    def test_run_within_wrappers(
        self, run_ranks: RunRanks, tmp_path: Path, strategy: Strategy
    ) -> None:
        run_ranks(2, save_derived, tmp_path, strategy)
        assert run_ranks(2, restore_derived, tmp_path, strategy) == [9.0, 9.0]


def build_derived(strategy: Strategy, value: float) -> tuple[Derived, nn.Module]:
    derived = Derived(value)
    if strategy == "fsdp":
        return derived, fully_shard(nn.Sequential(derived))
    return derived, DistributedDataParallel(derived)


def save_derived(rank: int, uri: Path, strategy: Strategy) -> None:
    save(uri, model=build_derived(strategy, 3.0)[1])


def restore_derived(rank: int, uri: Path, strategy: Strategy) -> float:
    derived, model = build_derived(strategy, 1.0)
    restore(uri, model=model)
    square: Any = derived.square
    whole: Tensor = square.full_tensor() if hasattr(square, "full_tensor") else square
    return whole.mean().item()


def clones(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].clone()


def casts(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].half()


def renames(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    state[f"{prefix}whole"] = state.pop(f"{prefix}weight").float() * 2


def adds_a_constant(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    state[f"{prefix}version"] = torch.tensor(3)


def hooked(hook: Hook) -> nn.Module:
    inner = nn.Linear(3, 2)
    inner._register_state_dict_hook(hook)
    return nn.Sequential(inner)


class TestCopies:
    @pytest.mark.parametrize(
        ("hook", "name"),
        [(clones, "0.weight"), (casts, "0.weight"), (renames, "0.whole")],
    )
    def test_are_refused_before_anything_is_saved(
        self, tmp_path: Path, hook: Hook, name: str
    ) -> None:
        with pytest.raises(ConfigError, match=rf"entry model\.{name} is a copy"):
            save(tmp_path, model=hooked(hook))
        assert not list(tmp_path.glob("steps/*"))

    def test_are_refused_before_anything_is_loaded_into_them(self, tmp_path: Path) -> None:
        checkpoint = save(tmp_path, model=nn.Sequential(nn.Linear(3, 2)))
        model = hooked(clones)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for load in (
            lambda: restore(tmp_path, model=model),
            lambda: keepstep.load(checkpoint, model=model),
        ):
            with pytest.raises(ConfigError, match=r"model\.0\.weight is a copy"):
                load()
        assert all(map(torch.equal, before, model.parameters()))

    def test_beside_all_that_the_module_has_are_taken(self, tmp_path: Path) -> None:
        save(tmp_path, model=hooked(adds_a_constant))
        restore(tmp_path, model=hooked(adds_a_constant))

    @pytest.mark.parametrize("strategy", ["none", "ddp", "fsdp"])
    def test_are_not_seen_where_there_are_none(
        self, run_ranks: RunRanks, tmp_path: Path, strategy: Strategy
    ) -> None:
        run_ranks(2 if strategy != "none" else 1, save_trained, tmp_path, strategy)


def save_trained(rank: int, uri: Path, strategy: Strategy) -> None:
    """Tied and frozen weights, shards that are empty, and parameters just unsharded."""
    model = build(strategy)
    optimizer = adamw(model)
    step(model, optimizer)
    model(torch.randint(0, 37, (6,)))
    save(uri, model=model, optim=optimizer)


class TestOnMeta:
    def test_a_model_is_refused_by_name_before_anything_is_read(self, tmp_path: Path) -> None:
        def built(device: str) -> dict[str, Any]:
            model = nn.Linear(3, 2, device=device)
            return {"model": model, "optim": AdamW(model.parameters())}

        checkpoint = save(tmp_path, **built("cpu"))
        for load in (
            lambda: restore(tmp_path, **built("meta")),
            lambda: restore(tmp_path, {"only": ["model"]}, **built("meta")),
            lambda: restore(tmp_path, {"only": ["model"], "cast": True}, **built("meta")),
            lambda: keepstep.load(checkpoint, model=nn.Linear(3, 2, device="meta")),
        ):
            with pytest.raises(ConfigError, match=r"model\.(weight|bias) is on the meta device"):
                load()

    def test_optimizer_state_is_refused_as_well(self, tmp_path: Path) -> None:
        model = nn.Linear(3, 2)
        optim = AdamW(model.parameters())
        model(torch.ones(1, 3)).sum().backward()
        optim.step()
        save(tmp_path, model=model, optim=optim)
        model = nn.Linear(3, 2, device="meta")
        with pytest.raises(ConfigError, match=r"optim\.state\..* is on the meta device"):
            restore(tmp_path, {"only": ["optim"]}, model=model, optim=AdamW(model.parameters()))

    def test_on_one_rank_ends_all_of_them(self, run_ranks: RunRanks, tmp_path: Path) -> None:
        save(tmp_path, model=nn.Linear(3, 2))
        errors = run_ranks(2, restore_on_meta, tmp_path)
        assert ["meta" in error for error in errors] == [True, True]


def restore_on_meta(rank: int, uri: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        restore(uri, model=nn.Linear(3, 2, device="meta" if rank else "cpu"))
    return str(caught.value)
