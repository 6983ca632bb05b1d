"""Small models with what makes resharding hard: uneven shards, tied and frozen weights."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

import keepstep
from keepstep.state.app_state import AppState

Strategy = Literal["none", "ddp", "fsdp", "hsdp"]


class Model(nn.Module):
    """Rows of 37, 7, 3 and 1: few of them divide by any world size."""

    def __init__(self, rows: int = 37) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, 7)
        self.first = nn.Linear(7, 3)
        self.norm = nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 1)
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.never = nn.Parameter(torch.randn(2, 2))
        self.out = nn.Linear(7, rows, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("counts", torch.arange(6, dtype=torch.int64))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        return self.second(self.norm(self.first(hidden))).mean() + self.out(hidden).square().mean()


def build(strategy: Strategy, *, seed: int = 0, rows: int = 37) -> nn.Module:
    torch.manual_seed(seed)
    model = Model(rows)
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    match strategy:
        case "ddp":
            return DistributedDataParallel(model, find_unused_parameters=True)
        case "fsdp":
            return fully_shard(model)
        case "hsdp":
            mesh = init_device_mesh(
                "cpu", (2, world_size // 2), mesh_dim_names=("replicate", "shard")
            )
            return fully_shard(model, mesh=mesh)
    return model


def adamw(model: nn.Module) -> Optimizer:
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1, "note": "matrices"}, {"params": rest}]
    return AdamW(groups, lr=1e-2, betas=(0.8, 0.95))


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def step(model: nn.Module, optimizer: Optimizer) -> None:
    loss = model(torch.randint(0, 37, (6,)))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def full_state(**tracked: Any) -> dict[str, Any]:
    """Everything tracked, gathered: name to tensor or value. *Ranks:* collective."""
    state = AppState(rank=0, seed=0)
    state.track(tracked)
    flat: dict[str, Any] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(f"{path}.{key}", item)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                visit(f"{path}.{number}", item)
        elif hasattr(value, "full_tensor"):
            flat[path] = value.full_tensor().clone()
        elif isinstance(value, Tensor):
            flat[path] = value.detach().clone()
        elif not hasattr(value, "getvalue"):
            flat[path] = value

    visit("", state.common_dict())
    return flat


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            assert value.dtype == other[name].dtype, name
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def without_statistics(state: dict[str, Any]) -> dict[str, Any]:
    """Running statistics of BatchNorm differ between the ranks of a job; one rank's are saved."""
    return {name: value for name, value in state.items() if "running_" not in name}


def open_session(uri: str, **options: Any) -> keepstep.Session:
    return keepstep.open(uri, every="1000steps", timeout_seconds=20, **options)
