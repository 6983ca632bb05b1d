from math import inf

import pytest
import torch
from torch import nn

from keepstep.config import OptimConfig
from keepstep.train.models import GPT, GPTShape
from keepstep.train.optim import (
    Schedule,
    apply_options,
    clip_gradients,
    learning_rate,
    make_optimizer,
)

CONFIG = OptimConfig(lr=1.0, warmup_steps=10, decay_steps=110, min_lr_ratio=0.1)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.55), (110, 0.1), (1_000_000, 0.1)],
)
def test_rate_warms_up_then_follows_a_cosine_to_the_horizon(step: int, rate: float) -> None:
    assert learning_rate(step, CONFIG) == pytest.approx(rate)


def test_rate_never_rises_after_warm_up() -> None:
    rates = [learning_rate(step, CONFIG) for step in range(10, 200)]
    assert rates == sorted(rates, reverse=True)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, decay_steps=10)
    assert learning_rate(0, config) == 1.0


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_that_are_no_embedding_decay(tied: bool) -> None:
    model = GPT(GPTShape(vocabulary=50, layers=1, width=32, heads=4, tied=tied, dropout=0.0))
    decayed, plain = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0.0
    assert {names[id(p)] for p in plain["params"]} == {
        "embedding.weight",
        "norm.weight",
        "blocks.0.attention_norm.weight",
        "blocks.0.mlp_norm.weight",
    }
    assert ("head.weight" in {names[id(p)] for p in decayed["params"]}) is not tied
    total = len(decayed["params"]) + len(plain["params"])
    assert total == len(list(model.parameters()))


def test_schedule_resumes_where_it_was() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), CONFIG)
    schedule = Schedule(optimizer, CONFIG)
    for _ in range(37):
        schedule.step()
    resumed_optimizer = make_optimizer(nn.Linear(2, 2), CONFIG)
    resumed = Schedule(resumed_optimizer, CONFIG)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed_optimizer.param_groups[0]["lr"] == learning_rate(37, CONFIG)
    assert [g["lr"] for g in resumed_optimizer.param_groups] == [
        g["lr"] for g in optimizer.param_groups
    ]


def test_configuration_wins_over_restored_options() -> None:
    saved = make_optimizer(nn.Linear(2, 2), OptimConfig(weight_decay=0.5)).state_dict()
    changed = OptimConfig(weight_decay=0.2, betas=(0.8, 0.9))
    optimizer = make_optimizer(nn.Linear(2, 2), changed)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    apply_options(optimizer, changed)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.2, 0.0]
    assert all(g["betas"] == (0.8, 0.9) for g in optimizer.param_groups)


@pytest.mark.parametrize(("max_norm", "norm_after"), [(1.0, 1.0), (100.0, 5.0), (0.0, 5.0)])
def test_clipping_bounds_the_norm_of_all_gradients(max_norm: float, norm_after: float) -> None:
    model = nn.Linear(1, 1)
    model.weight.grad, model.bias.grad = torch.full((1, 1), 3.0), torch.full((1,), 4.0)
    assert clip_gradients(model, max_norm).item() == 5.0
    after = torch.cat([model.weight.grad.flatten(), model.bias.grad]).norm().item()
    assert after == pytest.approx(norm_after, rel=1e-5)


def test_infinite_gradient_is_reported_in_the_norm() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.grad = torch.full((1, 1), inf)
    assert clip_gradients(model, 1.0).item() == inf
