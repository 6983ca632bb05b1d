from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepstep.data import Loader, Mixture
from keepstep.errors import ConfigError

WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


def mixture(weights: list[float], length: int = 37) -> Mixture:
    return Mixture({str(n): (range(length + n), weight) for n, weight in enumerate(weights)})


def sources_of(mixed: Mixture, ids: np.ndarray) -> np.ndarray:
    return np.searchsorted(mixed._starts, ids, side="right") - 1


@settings(max_examples=15, deadline=None)
@given(weights=WEIGHTS, position=st.integers(0, 10**12), count=st.integers(0, 700))
def test_any_position_is_found_without_those_before(
    weights: list[float], position: int, count: int
) -> None:
    mixed = mixture(weights)
    whole = mixed.sample_ids(seed=4, position=position, count=count)
    halves = [
        mixed.sample_ids(seed=4, position=position, count=count // 2),
        mixed.sample_ids(seed=4, position=position + count // 2, count=count - count // 2),
    ]
    assert whole.tolist() == np.concatenate(halves).tolist()
    assert ((whole >= 0) & (whole < len(mixed))).all()


@given(weights=WEIGHTS, block=st.integers(0, 10**12))
def test_shares_are_exact_but_for_a_handful(weights: list[float], block: int) -> None:
    mixed = mixture(weights)
    counts = mixed._counts(256 * block)
    assert sum(counts) == 256 * block
    for count, parts in zip(counts, mixed._parts, strict=True):
        assert abs(count - 256 * block * parts / 2**30) < len(weights) + 256 * block / 2**48


def test_each_source_goes_through_its_own_epochs() -> None:
    mixed = mixture([0.7, 0.3])
    ids = mixed.sample_ids(seed=0, position=0, count=4096)
    sources = sources_of(mixed, ids)
    assert Counter(sources.tolist()) == pytest.approx({0: 0.7 * 4096, 1: 0.3 * 4096}, abs=2)
    for number, length in enumerate([37, 38]):
        mine = (ids[sources == number] - mixed._starts[number]).tolist()
        epochs = [mine[i : i + length] for i in range(0, len(mine) - length, length)]
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
        assert all(one != other for one, other in pairwise(epochs))


def test_sources_are_spread_and_the_seed_says_how() -> None:
    mixed = mixture([1, 1])
    one, other = (
        sources_of(mixed, mixed.sample_ids(seed=seed, position=0, count=256)) for seed in (0, 1)
    )
    assert one.tolist() != other.tolist()
    assert one.tolist() != sorted(one.tolist())
    assert len({tuple(row) for row in one.reshape(-1, 2).tolist()}) == 4  # no beat of a batch


class Words:
    def __init__(self, *words: str) -> None:
        self._words = words

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, index: int) -> Any:
        return self._words[index]


def test_a_loader_reads_a_mixture_in_its_order() -> None:
    mixed = Mixture({"a": (Words("a0", "a1"), 3), "b": (Words("b0"), 1)})
    loader = Loader(mixed, global_size=64, collate=list)
    words = Counter(next(loader) + next(loader) + next(loader) + next(loader))
    assert words == {"a0": 96, "a1": 96, "b0": 64}
    assert [mixed[i] for i in range(3)] == ["a0", "a1", "b0"]


def test_other_weights_are_another_order() -> None:
    loader = Loader(mixture([1, 2]), global_size=4)
    with pytest.raises(ConfigError, match="digest was"):
        loader.load_state_dict(Loader(mixture([2, 1]), global_size=4).state_dict())


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weights_that_mean_nothing_are_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="every weight greater than 0"):
        mixture([1, weight])


def test_a_mixture_of_mixtures_is_refused() -> None:
    with pytest.raises(ConfigError, match="source 'both' of the mixture is one itself"):
        Mixture({"both": (mixture([1, 2]), 1)})


def test_an_empty_source_is_named() -> None:
    with pytest.raises(ConfigError, match="source 'b' of the mixture has no samples"):
        Mixture({"a": (Words("x"), 1), "b": (Words(), 1)})
