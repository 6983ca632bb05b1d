import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.data.order import permute, sample_ids
from keepstep.errors import ConfigError

SIZES = [1, 2, 3, 4, 5, 7, 8, 16, 17, 97, 256, 257, 1021, 1024]
GOLDEN = [869, 842, 924, 501, 567, 325, 655, 2]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_permutation_hits_every_place_once(size: int, key: int) -> None:
    images = permute(np.arange(size, dtype=np.uint64), size, key)
    assert sorted(images.tolist()) == list(range(size))


@given(size=st.integers(1, 300), seed=st.integers(0, 2**64), epoch=st.integers(0, 5))
def test_every_epoch_uses_every_sample_exactly_once(size: int, seed: int, epoch: int) -> None:
    ids = sample_ids(seed=seed, num_samples=size, position=epoch * size, count=size)
    assert sorted(ids.tolist()) == list(range(size))


@given(
    size=st.integers(1, 50),
    seed=st.integers(0, 2**32),
    position=st.integers(0, 500),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_seeking_equals_iterating(size: int, seed: int, position: int, cuts: list[int]) -> None:
    def ids(position: int, count: int) -> list[int]:
        return sample_ids(seed=seed, num_samples=size, position=position, count=count).tolist()

    pieces, place = [], position
    for count in cuts:
        pieces += ids(place, count)
        place += count
    assert pieces == ids(position, sum(cuts))


@pytest.mark.parametrize("size", [10**9, 2**30, 10**9 + 7])
def test_window_of_a_huge_epoch_is_distinct_and_in_range(size: int) -> None:
    ids = sample_ids(seed=3, num_samples=size, position=size - 50_000, count=50_000)
    assert len(np.unique(ids)) == 50_000
    assert ids.min() >= 0
    assert ids.max() < size
    assert ids.max() - ids.min() > size // 2  # spread over the whole epoch


def test_order_depends_on_seed_and_epoch() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return sample_ids(seed=seed, num_samples=100, position=100 * number, count=100).tolist()

    assert len({tuple(epoch(seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4


def test_order_is_shuffled_evenly() -> None:
    """Where a place is sent to is uniform over keys: chi-square with 9 degrees of freedom."""
    images = [int(permute(np.array([3], dtype=np.uint64), 10, key)[0]) for key in range(5000)]
    counts = np.bincount(images, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # p = 0.001


def test_order_never_changes() -> None:
    """A run of an older version resumes with these samples."""
    ids = sample_ids(seed=0, num_samples=1000, position=997, count=8)
    assert ids.tolist() == GOLDEN


def test_empty_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 samples"):
        sample_ids(seed=0, num_samples=0, position=0, count=1)
