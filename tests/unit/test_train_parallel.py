from typing import Literal

import pytest
import torch
import torch.distributed as dist
from torch import nn

from keepstep.config import ParallelConfig
from keepstep.errors import ConfigError
from keepstep.train.models import GPT, GPTShape
from keepstep.train.parallel import Layout, Parallel, parallelize, plan_layout
from keepstep.world import World

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
Strategy = Literal["auto", "ddp", "fsdp", "hsdp"]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)


def plain(**options: object) -> tuple[GPT, Parallel]:
    model = GPT(GPTShape(vocabulary=20, layers=4, width=16, heads=2, tied=True, dropout=0.0))
    parallel = parallelize(
        model,
        list(model.blocks),
        Layout("plain", {}),
        config=ParallelConfig.model_validate(options),
        precision="fp32",
        device=CPU,
    )
    return model, parallel


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("strategy", "size", "device", "expected"),
    [
        ("auto", 1, CPU, Layout("plain", {})),
        ("auto", 1, CUDA, Layout("plain", {})),
        ("auto", 4, CPU, Layout("ddp", {"replicate": 4})),
        ("auto", 4, CUDA, Layout("fsdp", {"shard": 4})),
        ("ddp", 4, CUDA, Layout("ddp", {"replicate": 4})),
        ("fsdp", 1, CPU, Layout("fsdp", {"shard": 1})),
        ("hsdp", 4, CPU, Layout("hsdp", {"replicate": 2, "shard": 2})),
    ],
)
def test_layout_follows_the_rule(
    strategy: Strategy, size: int, device: torch.device, expected: Layout
) -> None:
    world = World(world_size=size, local_world_size=2)
    layout = plan_layout(ParallelConfig(strategy=strategy), world, device)
    assert layout == expected
    assert layout.describe() == {"strategy": expected.strategy, "mesh": expected.mesh}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp"])
def test_single_process_without_a_group_is_plain(strategy: Strategy) -> None:
    assert plan_layout(ParallelConfig(strategy=strategy), World(), CPU) == Layout("plain", {})


@pytest.mark.usefixtures("group")
def test_shard_groups_that_do_not_fill_the_world_are_refused() -> None:
    config = ParallelConfig(strategy="hsdp", shard_size=2)
    with pytest.raises(ConfigError, match=r"parallel\.shard_size = 2 .* world size 3"):
        plan_layout(config, World(world_size=3), CPU)


@pytest.mark.parametrize(
    "options", [{"compile": True}, {"activation_checkpoint": "full"}, {"activation_checkpoint": 2}]
)
def test_options_keep_the_names_of_the_state(options: dict[str, object]) -> None:
    expected, found = plain()[0], plain(**options)[1].module
    assert list(found.state_dict()) == list(expected.state_dict())


@pytest.mark.parametrize(("which", "forwards"), [("none", 4), ("full", 8), (2, 6), (3, 6)])
def test_every_nth_block_is_computed_again(
    which: object, forwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 blocks; counted over a forward and a backward pass."""
    count = 0
    _, parallel = plain(activation_checkpoint=which)

    def counted(norm: nn.RMSNorm, inputs: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return original(norm, inputs)

    original = nn.RMSNorm.forward
    monkeypatch.setattr(nn.RMSNorm, "forward", counted)
    parallel.forward(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    # Each block has two norms and the model one more.
    assert count == 2 * forwards + 1
