"""What only torch can show: saved on n ranks, loaded on m, by any strategy, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import (
    Strategy,
    adamw,
    assert_equal,
    build,
    full_state,
    open_session,
    sgd,
    step,
    without_statistics,
)
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import StepLR

from keepstep.checkpoint.engine import load_state
from keepstep.checkpoint.fit import fit_state
from keepstep.checkpoint.reader import ShardReader, Snapshot
from keepstep.commit.blocks import BLOCK_BYTES
from keepstep.commit.catalog import Catalog
from keepstep.commit.verify import verify_checkpoint
from keepstep.state.app_state import AppState
from keepstep.storage.local import LocalStorage
from rank_processes import RunRanks

OPTIMIZERS = {"adamw": adamw, "sgd": sgd}


def save(rank: int, uri: str, strategy: Strategy, optimizer_name: str) -> dict[str, Any]:
    model = build(strategy)
    optimizer = OPTIMIZERS[optimizer_name](model)
    scheduler = StepLR(optimizer, 2)
    torch.manual_seed(rank)
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer, sched=scheduler)
        session.restore()
        for _ in range(3):
            step(model, optimizer)
            scheduler.step()
            session.tick(samples=6)
    return full_state(model=model, optim=optimizer)


def load(rank: int, uri: str, strategy: Strategy, optimizer_name: str) -> dict[str, Any]:
    model = build(strategy, seed=99)
    optimizer = OPTIMIZERS[optimizer_name](model)
    scheduler = StepLR(optimizer, 2)
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer, sched=scheduler)
        restored = session.restore()
        assert (restored.step, session.samples) == (3, 18)
        assert scheduler.last_epoch == 3
        inner = getattr(model, "module", model)
        assert inner.out.weight is inner.embedding.weight, "still tied"
        return full_state(model=model, optim=optimizer)


HOPS: list[tuple[Strategy, int, Strategy, int]] = [
    ("fsdp", 4, "fsdp", 2),
    ("fsdp", 2, "fsdp", 3),
    ("fsdp", 3, "none", 1),
    ("none", 1, "fsdp", 4),
    ("ddp", 4, "ddp", 2),
    ("ddp", 2, "fsdp", 3),
    ("fsdp", 3, "ddp", 2),
    ("hsdp", 4, "fsdp", 3),
    ("fsdp", 2, "hsdp", 4),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("strategy", "ranks", "to_strategy", "to_ranks"), HOPS)
def test_every_tensor_survives_a_change_of_strategy_and_world_size(
    run_ranks: RunRanks,
    tmp_path: Path,
    strategy: Strategy,
    ranks: int,
    to_strategy: Strategy,
    to_ranks: int,
    optimizer: str,
) -> None:
    saved = run_ranks(ranks, save, str(tmp_path), strategy, optimizer)
    loaded = run_ranks(to_ranks, load, str(tmp_path), to_strategy, optimizer)
    for state in (*saved[1:], *loaded):
        assert_equal(without_statistics(saved[0]), without_statistics(state))
    storage = LocalStorage(tmp_path)
    for checkpoint in Catalog(storage).candidates():
        assert verify_checkpoint(storage, checkpoint) == []


def test_a_replicated_model_is_written_once_by_all_ranks_together(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(2, save, str(tmp_path), "ddp", "adamw")
    (checkpoint,) = (tmp_path / "steps").iterdir()
    sizes = [path.stat().st_size for path in sorted(checkpoint.glob("*.distcp"))]
    assert len(sizes) == 2
    assert min(sizes) > 0.3 * max(sizes)


def running_mean(rank: int, uri: str) -> list[float]:
    model = build("ddp")
    with open_session(uri) as session:
        session.track(model=model)
        if session.restore().fresh:
            torch.manual_seed(rank)
            model(torch.randint(0, 37, (6,)))
            session.tick()
    mean: list[float] = model.module.norm.running_mean.tolist()
    return mean


def test_buffers_that_differ_between_ranks_are_the_coordinators(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    """DDP broadcasts rank 0's at the next forward: to save another's would change the run."""
    live = run_ranks(3, running_mean, str(tmp_path))
    assert live[0] != live[1]
    assert run_ranks(3, running_mean, str(tmp_path)) == [live[0]] * 3


def every_dtype(rank: int, uri: str, seed: int) -> list[tuple[str, list[int], list[Any]]]:
    dtypes = [
        torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
        torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
    ]  # fmt: skip
    torch.manual_seed(seed)
    module = torch.nn.Module()
    for number, dtype in enumerate(dtypes):
        for shape in ((), (0,), (3,), (4, 5), (2, 0)):
            values = torch.rand(shape) * 3
            module.register_buffer(f"b{number}_{len(shape)}_{sum(shape)}", values.to(dtype))
    module.register_buffer("strided", torch.rand(6, 4).t())
    with open_session(uri) as session:
        session.track(model=module)
        if session.restore().fresh:
            session.tick()
    return [(str(b.dtype), list(b.shape), b.reshape(-1).tolist()) for b in module.buffers()]


def test_every_dtype_and_shape_comes_back(run_ranks: RunRanks, tmp_path: Path) -> None:
    (saved,) = run_ranks(1, every_dtype, str(tmp_path), 1)
    assert run_ranks(2, every_dtype, str(tmp_path), 2) == [saved, saved]


def random_numbers(rank: int, uri: str) -> list[Any]:
    import random

    import numpy as np

    with open_session(uri, seed=5) as session:
        session.track(model=torch.nn.Linear(2, 2))
        if session.restore().fresh:
            for generator in (random.seed, np.random.seed, torch.manual_seed):
                generator(100 + rank)
            session.tick()
            session.save()
        return [random.random(), np.random.normal(), torch.randn(3).tolist()]


def test_each_rank_continues_its_own_random_streams(run_ranks: RunRanks, tmp_path: Path) -> None:
    went_on = run_ranks(2, random_numbers, str(tmp_path))
    assert went_on[0] != went_on[1]
    assert run_ranks(2, random_numbers, str(tmp_path)) == went_on


def test_another_world_size_gets_new_streams_that_depend_on_nothing_else(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(2, random_numbers, str(tmp_path))
    once = run_ranks(3, random_numbers, str(tmp_path))
    assert len({str(numbers) for numbers in once}) == 3, "ranks do not share a stream"
    assert run_ranks(1, random_numbers, str(tmp_path))[0] == once[0]


class Wide(torch.nn.Module):
    """One matrix of 16 MiB: sixteen checksum blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(1024, 4096))


def save_wide(rank: int, uri: str) -> None:
    with open_session(uri) as session:
        session.track(model=Wide())
        session.restore()
        session.tick()


def bytes_read_for_a_shard(rank: int, uri: str) -> int:
    storage = LocalStorage(uri)
    (checkpoint,) = Catalog(storage).candidates()
    state = AppState(rank=rank, seed=0)
    state.track({"model": fully_shard(Wide())})
    snapshot = Snapshot.open(storage, Catalog(storage).manifest(checkpoint))
    reader = ShardReader(storage, snapshot)
    load_state(reader, state, fit_state(reader, state, where=uri), with_rng=False)
    return reader.bytes_read


def test_a_shard_is_read_by_its_byte_range_and_not_whole(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(1, save_wide, str(tmp_path))
    needed = 1024 * 4096 * 4 // 4
    for read in run_ranks(4, bytes_read_for_a_shard, str(tmp_path)):
        assert needed <= read <= needed + 2 * BLOCK_BYTES, "the range, and the blocks at its ends"
