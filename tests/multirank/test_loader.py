"""Loaders in real ranks, under a session, across changes of the world."""

from multiprocessing import current_process
from pathlib import Path
from typing import Any

import pytest
import torch

import keepstep.session.session  # here, not in every rank anew
from keepstep.data import Loader, StreamLoader
from keepstep.data.order import sample_ids
from rank_processes import RunRanks


class Counting:
    """A stream over its share of 20 numbers."""

    def __init__(self, index: int, count: int) -> None:
        self._mine = range(index, 20, count)
        self._next = 0

    def __iter__(self) -> Any:
        while self._next < len(self._mine):
            self._next += 1
            yield self._mine[self._next - 1]

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = state["next"]


def make(kind: str, num_workers: int) -> Loader | StreamLoader:
    if kind == "map":
        return Loader(
            range(15), global_size=8, microbatch=2, seed=2, num_workers=num_workers, collate=list
        )
    return StreamLoader(
        Counting, global_size=8, microbatch=2, num_workers=num_workers, collate=list
    )


def train(
    rank: int, uri: str, kind: str, num_workers: int, until: int, wasted: int
) -> list[list[int]]:
    """The samples of each step of this rank; those after the last save are lost with it."""
    current_process()._config["daemon"] = False  # ranks of tests are, and may have no workers then
    loader = make(kind, num_workers)
    session = keepstep.open(uri, every="1steps", mode="sync")
    with session:
        session.track(data=loader)
        session.restore()
        taken = []
        while session.step < until:
            taken.append([id for batch, weight in loader.passes() if weight for id in batch])
            session.tick(samples=8)
    for _ in range(wasted):
        list(loader.passes())
    return taken


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_pinned_where_cuda_is_in_use(num_workers: int) -> None:
    torch.cuda.init()
    loader = Loader(range(15), global_size=4, num_workers=num_workers)
    assert next(loader).is_pinned()


@pytest.mark.parametrize("kind", ["map", pytest.param("stream", marks=pytest.mark.long)])
def test_samples_go_on_exactly_at_other_world_sizes(
    kind: str, tmp_path: Path, run_ranks: RunRanks
) -> None:
    uri = str(tmp_path / "run")
    steps: list[list[int]] = []
    for world_size, num_workers, until in [(2, 1, 2), (3, 0, 4), (1, 2, 5), (4, 0, 7)]:
        by_rank = run_ranks(world_size, train, uri, kind, num_workers, until, 1)
        steps += [[id for part in parts for id in part] for parts in zip(*by_rank, strict=True)]
    assert len(steps) == 7
    if kind == "map":
        expected = sample_ids(seed=2, num_samples=15, position=0, count=56).reshape(7, 8).tolist()
    else:
        shares = [[range(s, 20, 4)[n % 5] for n in range(14)] for s in range(4)]
        expected = [[id for share in shares for id in share[2 * t : 2 * t + 2]] for t in range(7)]
    assert steps == expected
