"""What several ranks compute together: real process groups over gloo, one rank a process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing import get_context

from keepstep.config import OptimConfig, ParallelConfig
from keepstep.data.sampler import GlobalSampler
from keepstep.train.evaluation import evaluate
from keepstep.train.models import GPT, GPTShape
from keepstep.train.parallel import Parallel, parallelize, plan_layout
from keepstep.train.tasks import Batch
from keepstep.train.trainer import Trainer
from keepstep.world import World

SAMPLER = GlobalSampler(num_samples=100, global_size=10, microbatch=2, seed=1)  # 5 slots
CPU = torch.device("cpu")
Strategy = Literal["ddp", "fsdp", "hsdp"]


@dataclass
class RandomText:
    """A task on random tokens, small enough to run in any number of ranks."""

    num_samples: int = 100
    num_validation_samples: int = 70
    tokens_per_sample: int = 8
    data_digest: str = "none"
    dropout: float = 0.0
    loss_factor: float = 1.0
    tokens: Tensor = field(
        default_factory=lambda: torch.randint(
            0, 16, (100, 9), generator=torch.Generator().manual_seed(0)
        )
    )

    def make_model(self) -> GPT:
        torch.manual_seed(3)
        shape = GPTShape(
            vocabulary=16, layers=2, width=16, heads=2, tied=True, dropout=self.dropout
        )
        return GPT(shape)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, GPT)
        return list(model.blocks)

    def train_batch(self, ids: NDArray[np.int64]) -> Batch:
        rows = self.tokens[torch.from_numpy(ids)]
        return rows[:, :-1], rows[:, 1:]

    validation_batch = train_batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch[0]).float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten())
        return loss * self.loss_factor


def start(
    world: World,
    strategy: Strategy,
    *,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    task: RandomText | None = None,
    **options: Any,
) -> tuple[Trainer, Parallel, RandomText]:
    task = task or RandomText()
    config = ParallelConfig(strategy=strategy, **options)
    model = task.make_model()
    layout = plan_layout(config, world, CPU)
    parallel = parallelize(
        model, task.blocks(model), layout, config=config, precision=precision, device=CPU
    )
    trainer = Trainer(
        parallel, task, OptimConfig(warmup_steps=0), num_slots=SAMPLER.num_slots, seed=1
    )
    return trainer, parallel, task


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def parameters(parallel: Parallel) -> dict[str, Tensor]:
    return {name: full(p) for name, p in parallel.module.named_parameters()}


def run_steps(
    trainer: Trainer, world: World, count: int, after: Callable[[], object] = lambda: None
) -> None:
    for step in range(count):
        trainer.accumulate(SAMPLER.slots(step * SAMPLER.global_size, world), step=step)
        trainer.update()
        after()


def gradients(world: World, strategy: Strategy) -> dict[str, Tensor]:
    trainer, parallel, _ = start(world, strategy)
    trainer.accumulate(SAMPLER.slots(20, world), step=2)
    return {
        name: full(p.grad) for name, p in parallel.module.named_parameters() if p.grad is not None
    }


def parameters_after_steps(
    world: World, strategy: Strategy, *, evaluates: bool = False, **options: Any
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    trainer, parallel, task = start(world, strategy, **options)
    torch.manual_seed(10 + world.rank)

    def after() -> None:
        if evaluates:
            evaluate(parallel, task, world, num_samples=70)

    run_steps(trainer, world, 3, after)
    return parameters(parallel)


def validation_loss(world: World, strategy: Strategy) -> float:
    _, parallel, task = start(world, strategy)
    return evaluate(parallel, task, world, num_samples=70)


def sharded_after_evaluating(world: World) -> bool:
    _, parallel, task = start(world, "fsdp")
    evaluate(parallel, task, world, num_samples=70)
    return all(isinstance(p, DTensor) for p in parallel.module.parameters())


def overflow(world: World, strategy: Strategy) -> dict[str, Any]:
    """One fp16 step as usual, then one that overflows on the last rank only."""
    trainer, parallel, task = start(world, strategy, precision="fp16")
    scaler: Any = trainer.state()["scaler"]
    schedule: Any = trainer.state()["sched"]
    run_steps(trainer, world, 1)
    before, scale = parameters(parallel), scaler.get_scale()
    is_last_rank = world.rank == world.world_size - 1
    if strategy == "ddp" and is_last_rank:
        task.loss_factor = torch.inf
    trainer.accumulate(SAMPLER.slots(10, world), step=1)
    if strategy == "fsdp" and is_last_rank:  # in this rank's shard, after the reduction
        gradient = parallel.module.get_parameter("norm.weight").grad
        assert isinstance(gradient, DTensor)
        gradient.to_local()[0] = torch.inf
    trainer.update()
    after = parameters(parallel)
    return {
        "skipped": all(torch.equal(before[name], after[name]) for name in before),
        "scale_ratio": scaler.get_scale() / scale,
        "steps": schedule.state_dict()["step"],
    }


def probe(world: World) -> dict[str, Any]:
    """Everything the tests below judge, computed in one set of processes."""
    strategies: tuple[Strategy, ...] = ("ddp", "fsdp")
    results: dict[str, Any] = {
        f"{name.__name__}.{strategy}": name(world, strategy)
        for name in (gradients, validation_loss, overflow, parameters_after_steps)
        for strategy in strategies
    }
    results["evaluating"] = parameters_after_steps(world, "fsdp", evaluates=True)
    results["sharded"] = sharded_after_evaluating(world)
    dropping = RandomText(dropout=0.2)
    for which in ("none", "full", 2):
        results[f"recompute.{which}"] = parameters_after_steps(
            world, "fsdp", task=dropping, activation_checkpoint=which
        )
    if world.world_size == 2:
        results["gradients.hsdp"] = gradients(world, "hsdp")
    return results


def _rank_main(rank: int, size: int, path: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{path}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    torch.save(probe(World(rank=rank, world_size=size, local_world_size=1)), f"{path}/{rank}")
    dist.destroy_process_group()


@cache
def probed(size: int) -> list[dict[str, Any]]:
    """What each of ``size`` ranks found."""
    with TemporaryDirectory() as path:
        context = get_context("spawn")
        ranks = [
            context.Process(target=_rank_main, args=(rank, size, path)) for rank in range(size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(timeout=120)
            rank.kill()
        assert [rank.exitcode for rank in ranks] == [0] * size
        return [torch.load(Path(path, str(rank))) for rank in range(size)]


@cache
def alone(what: str) -> Any:
    """The same in this process, without a process group."""
    world = World()
    torch.set_num_threads(1)
    functions: dict[str, Callable[[World, Strategy], Any]] = {
        "gradients": gradients,
        "validation_loss": validation_loss,
    }
    return functions[what](world, "ddp")


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def test_accumulated_gradient_is_that_of_the_mean_over_the_batch() -> None:
    task = RandomText()
    model = task.make_model()
    task.loss(model, task.train_batch(SAMPLER.batch(20))).backward()
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_close(alone("gradients"), whole)


@pytest.mark.parametrize(
    ("size", "strategy"), [(2, "ddp"), (2, "fsdp"), (2, "hsdp"), (3, "ddp"), (3, "fsdp")]
)
def test_gradient_does_not_depend_on_the_world(size: int, strategy: str) -> None:
    """5 slots: 3 + 2 of them, and 2 + 2 + 1."""
    for rank in probed(size):
        assert_close(rank[f"gradients.{strategy}"], alone("gradients"))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_validation_loss_is_the_same_bits_in_any_world(size: int, strategy: str) -> None:
    """70 samples in 3 chunks: one rank of two repeats a chunk."""
    losses = {rank[f"validation_loss.{strategy}"] for rank in probed(size)}
    assert losses == {alone("validation_loss")}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_overflow_on_one_rank_skips_the_step_on_all(size: int, strategy: str) -> None:
    expected = {"skipped": True, "scale_ratio": 0.5, "steps": 2}
    assert [rank[f"overflow.{strategy}"] for rank in probed(size)] == [expected] * size


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_hold_the_same_parameters(size: int) -> None:
    first, *others = probed(size)
    for strategy in ("ddp", "fsdp"):
        for other in others:
            key = f"parameters_after_steps.{strategy}"
            assert_equal(other[key], first[key])


@pytest.mark.parametrize("size", [2, 3])
def test_evaluating_does_not_change_training(size: int) -> None:
    for rank in probed(size):
        assert_equal(rank["evaluating"], rank["parameters_after_steps.fsdp"])


def test_parameters_are_sharded_after_evaluating() -> None:
    """A save may follow at once."""
    assert [rank["sharded"] for rank in probed(2)] == [True, True]


@pytest.mark.parametrize("which", ["full", "2"])
def test_recomputed_activations_change_no_bit_even_with_dropout(which: str) -> None:
    for rank in probed(2):
        assert_equal(rank[f"recompute.{which}"], rank["recompute.none"])
