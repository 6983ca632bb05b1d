"""The loader in one process, and what becomes of its workers."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from keepstep.data import Loader
from keepstep.data.order import sample_ids
from keepstep.errors import ConfigError
from keepstep.world import World

WORKERS = pytest.mark.parametrize("num_workers", [0, 1, 3])


class Numbers:
    """Sample ``i`` is ``i`` and what three generators drew for it."""

    data_digest = "sha256:numbers"

    def __init__(self, length: int = 50) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, random.random(), np.random.random(), torch.rand(()).item()


class Rows(Numbers):
    def __getitems__(self, indices: list[int]) -> list[float]:
        return [index + torch.rand(()).item() for index in indices]


def drawn(loader: Loader, steps: int) -> list[list[float]]:
    return [part.tolist() for _ in range(steps) for part in next(loader)]


@WORKERS
def test_batches_follow_the_order_across_epochs(num_workers: int) -> None:
    loader = Loader(Numbers(10), global_size=4, seed=3, num_workers=num_workers)
    ids = [id for _ in range(5) for id in next(loader)[0].tolist()]
    assert ids == sample_ids(seed=3, num_samples=10, position=0, count=20).tolist()
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))
    assert (loader.samples, loader.epoch) == (20, 2)


@pytest.mark.parametrize("dataset", [Numbers(), Rows()])
def test_what_a_sample_draws_depends_neither_on_workers_nor_on_a_resume(dataset: Numbers) -> None:
    whole = drawn(Loader(dataset, global_size=6), 4)
    assert drawn(Loader(dataset, global_size=6, num_workers=2), 4) == whole
    resumed = Loader(dataset, global_size=6)
    resumed.load_state_dict({"samples": 12} | _identity(resumed))
    assert drawn(resumed, 2) == whole[len(whole) // 2 :]
    assert drawn(Loader(dataset, global_size=6, seed=1), 4) != whole


def test_a_subset_is_read_sample_by_sample_if_what_is_below_is() -> None:
    everything = torch.utils.data.Subset(Numbers(), range(50))
    assert drawn(Loader(everything, global_size=6), 2) == drawn(Loader(Numbers(), global_size=6), 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_generators_of_the_loop_are_left_alone(num_workers: int) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(()).item()

    def seed() -> None:
        random.seed(5), np.random.seed(5), torch.manual_seed(5)

    seed()
    undisturbed = [draw() for _ in range(3)]
    seed()
    loader = Loader(Numbers(), global_size=6, num_workers=num_workers)
    assert [(draw(), next(loader))[0] for _ in range(3)] == undisturbed


def test_the_position_is_what_was_taken_not_what_was_read_ahead() -> None:
    loader = Loader(Numbers(), global_size=6, num_workers=2, prefetch=4)
    first, second = next(loader), next(loader)
    assert loader.state_dict()["samples"] == 12
    state = loader.state_dict()
    third = next(loader)
    assert len({batch[0].tolist().__repr__() for batch in (first, second, third)}) == 3
    loader.load_state_dict(state)
    assert torch.equal(next(loader)[0], third[0])


def test_passes_carry_weights_and_repeat_the_last_where_ranks_own_less() -> None:
    loaders = [
        Loader(Numbers(), global_size=10, microbatch=2, world=World(rank=rank, world_size=3))
        for rank in range(3)
    ]
    parts = [list(loader.passes()) for loader in loaders]
    assert [[weight for _, weight in part] for part in parts] == [[0.6, 0.6], [0.6, 0.6], [0.6, 0]]
    assert parts[2][0][0] is parts[2][1][0]
    ids = [id for part in parts for batch, weight in part if weight for id in batch[0].tolist()]
    assert ids == sample_ids(seed=0, num_samples=50, position=0, count=10).tolist()
    assert {loader.samples for loader in loaders} == {10}


def test_a_step_that_is_left_half_way_begins_anew() -> None:
    loader = Loader(Numbers(), global_size=6, microbatch=2, num_workers=2)
    passes = loader.passes()
    first, _ = next(passes)
    passes.close()
    assert loader.samples == 0
    again, *_ = loader.passes()
    assert torch.equal(again[0][0], first[0])
    assert loader.samples == 6


def test_next_refuses_a_part_of_several_passes() -> None:
    with pytest.raises(ConfigError, match=r"3 microbatches of 2 for 1 ranks: iterate over passes"):
        next(Loader(Numbers(), global_size=6, microbatch=2))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    loader = Loader(Numbers(), global_size=7, world=World(world_size=2))
    with pytest.raises(ConfigError, match=r"global_size = 7 does not divide among 2 ranks"):
        next(loader)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"seed": 9}, "seed was 9"),
        ({"num_samples": 7}, "num_samples was 7"),
        ({"digest": "x"}, "digest was x"),
    ],
)
def test_the_position_in_another_order_is_refused(other: dict[str, Any], told: str) -> None:
    loader = Loader(Numbers(), global_size=6)
    with pytest.raises(ConfigError, match=told):
        loader.load_state_dict({"samples": 6} | _identity(loader) | other)
    assert loader.samples == 0


class Broken(Numbers):
    def __getitem__(self, index: int) -> Any:
        raise OSError("no such image")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_failing_sample_is_named(num_workers: int) -> None:
    loader = Loader(Broken(1), global_size=1, num_workers=num_workers)
    with pytest.raises(OSError, match="no such image") as caught:
        next(loader)
    told = f"{caught.value} {getattr(caught.value, '__notes__', '')}"
    assert "while reading sample 0 of the data set, at position 0" in told
    assert loader.samples == 0


def test_wrong_numbers_of_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_workers = -1"):
        Loader(Numbers(), global_size=6, num_workers=-1)


def _identity(loader: Loader) -> dict[str, Any]:
    return {name: value for name, value in loader.state_dict().items() if name != "samples"}
