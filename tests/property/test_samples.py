"""Which samples a run consumes: each once per epoch in one order, whatever happens on the way."""

import tracemalloc
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepstep.data import Loader, Mixture, StreamLoader
from keepstep.data import loader as loader_module
from keepstep.data import order as order_module
from keepstep.data.order import sample_ids
from keepstep.data.passes import PassLoader
from keepstep.world import World

PERIODS = st.lists(
    st.tuples(
        st.integers(1, 6),  # world size
        st.integers(0, 5),  # steps until the last commit
        st.integers(0, 3),  # steps after it, lost to a kill
        st.integers(0, 2),  # passes of the step that the kill came in
    ),
    min_size=1,
    max_size=5,
)
"""What a run goes through: starts, each of which ends with a kill."""


def step_of(loaders: list[PassLoader]) -> list[int]:
    """The samples of one step, over all ranks."""
    return [
        int(id) for loader in loaders for batch, weight in loader.passes() if weight for id in batch
    ]


def consumed(make: Any, periods: list[tuple[int, int, int, int]]) -> list[int]:
    """The samples of all steps that were committed, over kills and changes of the world."""
    state: dict[str, Any] | None = None
    ids: list[int] = []
    for world_size, steps, lost_steps, lost_passes in periods:
        loaders = [make(World(rank=rank, world_size=world_size)) for rank in range(world_size)]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
        for _ in range(steps):
            ids += step_of(loaders)
        state = merged([loader.state_dict() for loader in loaders])
        for _ in range(lost_steps):
            step_of(loaders)
        for loader in loaders:
            for _ in zip(range(lost_passes), loader.passes(), strict=False):
                pass
    return ids


def merged(states: list[dict[str, Any]]) -> dict[str, Any]:
    assert all(state == states[0] for state in states)
    return states[0]


@settings(deadline=None, max_examples=40)
@given(
    num_samples=st.integers(1, 60),
    slots=st.integers(6, 9),
    microbatch=st.integers(1, 3),
    periods=PERIODS,
    seed=st.integers(0, 3),
)
def test_each_sample_once_per_epoch_in_one_order(
    num_samples: int,
    slots: int,
    microbatch: int,
    periods: list[tuple[int, int, int, int]],
    seed: int,
) -> None:
    def make(world: World) -> Loader:
        return Loader(
            range(num_samples),
            global_size=slots * microbatch,
            microbatch=microbatch,
            seed=seed,
            collate=list,
            world=world,
        )

    ids = consumed(make, periods)
    count = slots * microbatch * sum(steps for _, steps, _, _ in periods)
    assert ids == sample_ids(seed=seed, num_samples=num_samples, position=0, count=count).tolist()
    for start in range(0, count - num_samples + 1, num_samples):
        assert sorted(ids[start : start + num_samples]) == list(range(num_samples))


@settings(deadline=None, max_examples=15)
@given(periods=PERIODS, weight=st.floats(0.1, 10))
def test_a_mixture_goes_on_in_its_order(
    periods: list[tuple[int, int, int, int]], weight: float
) -> None:
    mixed = Mixture({"a": (range(7), weight), "b": (range(5), 1)})

    def make(world: World) -> Loader:
        return Loader(mixed, global_size=12, microbatch=2, collate=list, world=world)

    # Samples of the sources have the same numbers: what is compared is what the ids stand for.
    ids = mixed.sample_ids(seed=0, position=0, count=12 * sum(steps for _, steps, _, _ in periods))
    assert consumed(make, periods) == [mixed[id] for id in ids.tolist()]


class Counting:
    """A stream over its share of ``range(size)`` that keeps its own position."""

    def __init__(self, index: int, count: int, size: int) -> None:
        self._mine = list(range(index, size, count))
        self._next = 0

    def __iter__(self) -> Any:
        while self._next < len(self._mine):
            self._next += 1
            yield self._mine[self._next - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next = state["next"]


def gathered(loaders: list[StreamLoader]) -> list[Any]:
    """What ranks gather through their process group."""
    return [
        position
        for loader in loaders
        for position in loader._positions[
            loader._cut.owned(loader._world()).start : loader._cut.owned(loader._world()).stop
        ]
    ]


@settings(deadline=None, max_examples=40)
@given(size=st.integers(8, 40), periods=PERIODS)
def test_streams_go_on_with_the_microbatches_they_belong_to(
    size: int, periods: list[tuple[int, int, int, int]]
) -> None:
    everything: list[StreamLoader] = []

    def make(world: World) -> StreamLoader:
        if world.rank == 0:
            everything.clear()
        made = StreamLoader(
            lambda index, count: Counting(index, count, size),
            global_size=16,
            microbatch=2,
            collate=list,
            world=world,
        )
        everything.append(made)
        made._all_positions = lambda: gathered(everything)  # type: ignore[method-assign]
        return made

    steps = sum(steps for _, steps, _, _ in periods)
    ids = np.array(consumed(make, periods)).reshape(steps, 8, 2)
    for index in range(8):
        share = list(range(index, size, 8))
        expected = [share[n % len(share)] for n in range(2 * steps)]
        assert ids[:, index].ravel().tolist() == expected


@pytest.mark.parametrize("kind", ["data set", "mixture"])
def test_a_position_among_a_billion_samples_costs_no_more_than_the_first(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    billion = range(10**9)
    dataset = billion if kind == "data set" else Mixture({"a": (billion, 3), "b": (range(9), 1)})
    images = 0

    def counting(places: Any, *rest: Any) -> Any:
        nonlocal images
        images += len(places)
        return feistel(places, *rest)

    feistel = order_module._feistel
    monkeypatch.setattr(order_module, "_feistel", counting)

    def first_batch_at(samples: int) -> int:
        nonlocal images
        images = 0
        began = perf_counter()
        loader = loader_module.Loader(dataset, global_size=64, collate=list)
        loader.load_state_dict(loader.state_dict() | {"samples": samples})
        assert len(next(loader)) == 64
        print(f"{kind}, sample {samples}: {1e3 * (perf_counter() - began):.2f} ms")
        return images

    first_batch_at(0)  # imports what it needs
    tracemalloc.start()
    costs = [first_batch_at(samples) for samples in (0, 999_999_000, 7 * 10**9 + 5)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 50 << 20
    assert max(costs) < 5000  # images of the permutation: some for the batch, none for its past
