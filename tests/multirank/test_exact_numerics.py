"""Exact mode: one run on one rank, on several, and on ever other numbers of them, bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import keepstep
from keepstep.commit.catalog import Catalog
from keepstep.config import Config
from keepstep.drills.history import tell
from keepstep.drills.remains import read_remains
from keepstep.storage.local import LocalStorage
from keepstep.train.loop import train
from keepstep.train.models import GPT, GPTShape
from keepstep.train.tasks import Batch
from rank_processes import run_in_ranks

CPU = torch.device("cpu")
STEPS = 10
HOPS = ((4, 2), (2, 4), (3, 6), (1, 8), (5, 10))
"""World size, and the step up to which it trains."""
PAIRED_HOPS = ((4, 5), (2, 10))
"""With HSDP, two ranks share a replica."""


@dataclass
class RandomText:
    """Random tokens; a batch has 6 slots, which 4 and 5 ranks cannot share evenly."""

    num_samples: int = 100
    num_validation_samples: int = 70
    tokens_per_sample: int = 8
    data_digest: str = "none"
    tokens: Tensor = field(
        default_factory=lambda: torch.randint(
            0, 16, (100, 9), generator=torch.Generator().manual_seed(0)
        )
    )

    def make_model(self) -> nn.Module:
        shape = GPTShape(vocabulary=16, layers=2, width=20, heads=2, tied=True, dropout=0.2)
        model = GPT(shape)
        model.blocks[1].mlp.down.weight.requires_grad = False
        return model

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, GPT)
        return list(model.blocks)

    def train_batch(self, ids: NDArray[np.int64]) -> Batch:
        rows = self.tokens[torch.from_numpy(ids)]
        return rows[:, :-1], rows[:, 1:]

    validation_batch = train_batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch[0]).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten())


def config_of(settings: Mapping[str, Any], steps: int = STEPS) -> Config:
    sections: dict[str, dict[str, Any]] = {
        "batch": {"global_size": 12, "microbatch": 2},
        "optim": {"warmup_steps": 2, "decay_steps": STEPS, "clip_norm": 0.5},
        "train": {"steps": steps, "log_samples": True, "log_every": 1, "evaluate_every": 5},
    }
    for name, value in settings.items():
        section, _, option = name.partition(".")
        sections.setdefault(section, {})[option] = value
    return Config.model_validate(sections)


def run(rank: int, uri: str, settings: Mapping[str, Any], steps: int) -> float | None:
    """One job; the loss of its last step."""
    config = config_of(settings, steps)
    with keepstep.open(uri, every="1000steps", seed=config.seed, timeout_seconds=20) as session:
        return train(session, RandomText(), config, CPU).last_loss


def state_of(uri: str) -> dict[str, Any]:
    """The newest checkpoint as a stock reader sees it, without random generators and progress."""
    latest = Catalog(LocalStorage(uri)).latest()
    assert latest is not None
    assert latest.step == STEPS
    path = Path(uri) / "state.pt"
    dcp_to_torch_save(Path(uri) / "steps" / latest.name, path)
    state = torch.load(path, weights_only=False)
    return {name: state[name] for name in ("model", "optim", "sched", "scaler") if name in state}


def bits(value: Any) -> Any:
    """Comparable, also between zeros of different sign and between NaNs."""
    if isinstance(value, Tensor):
        return (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value


@dataclass
class Trained:
    """What a run computed."""

    slot_losses: list[tuple[str, ...]]
    state: Any
    last_loss: str


def trained(uri: str, settings: Mapping[str, Any], hops: tuple[tuple[int, int], ...]) -> Trained:
    last_losses: list[float | None] = []
    for world_size, steps in hops:
        last_losses = run_in_ranks(world_size, run, uri, settings, steps)
    steps_done = tell(read_remains(LocalStorage(uri))).steps
    assert [step.number for step in steps_done] == list(range(1, STEPS + 1))
    (last_loss,) = {loss.hex() for loss in last_losses if loss is not None}
    losses = [tuple(loss.hex() for loss in step.losses) for step in steps_done]
    return Trained(losses, bits(state_of(uri)), last_loss)


def assert_same(found: Trained, expected: Trained) -> None:
    assert found.slot_losses == expected.slot_losses
    assert found.last_loss == expected.last_loss
    assert found.state.keys() == expected.state.keys()
    for part, values in expected.state.items():
        assert found.state[part] == values, part


@cache
def alone(**settings: Any) -> Trained:
    """The run on one rank."""
    with TemporaryDirectory() as path:
        return trained(f"{path}/run", settings, ((1, STEPS),))


@pytest.mark.parametrize(
    ("strategy", "hops"), [("ddp", HOPS), ("fsdp", HOPS), ("hsdp", PAIRED_HOPS)]
)
def test_run_on_changing_worlds_is_the_run_on_one_rank(
    strategy: str, hops: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    """One and the same for all strategies: replicas and shards are added up alike."""
    settings = settings_of(strategy)
    assert_same(trained(f"{tmp_path}/run", settings, hops), alone(**settings_of("ddp")))


@pytest.mark.long
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp"])
def test_matrix(strategy: str, precision: str, recompute: str, tmp_path: Path) -> None:
    settings = settings_of(strategy, precision=precision)
    # FSDP casts the parameters, otherwise autocast casts what it thinks fit.
    expected = alone(**settings_of("ddp" if strategy == "ddp" else "fsdp", precision=precision))
    chosen = settings | {"parallel.activation_checkpoint": recompute}
    hops = PAIRED_HOPS if strategy == "hsdp" else HOPS
    assert_same(trained(f"{tmp_path}/changing", chosen, hops), expected)
    whole = ((4, STEPS),)
    assert_same(trained(f"{tmp_path}/whole", chosen, whole), expected)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_unclipped_gradients_are_exact_too(strategy: str, tmp_path: Path) -> None:
    changed = {"optim.clip_norm": 0.0}
    expected = alone(**settings_of("ddp") | changed)
    assert_same(trained(f"{tmp_path}/run", settings_of(strategy) | changed, HOPS), expected)


def settings_of(strategy: str, *, precision: str = "fp32") -> dict[str, Any]:
    shards = {"parallel.shard_size": 2} if strategy == "hsdp" else {}
    return {"parallel.strategy": strategy, "train.precision": precision, **shards}
