import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.data.sampler import GlobalSampler
from keepstep.errors import ConfigError
from keepstep.world import World


def worlds(size: int) -> list[World]:
    return [World(rank=rank, world_size=size) for rank in range(size)]


@given(
    slots=st.integers(1, 16),
    microbatch=st.integers(1, 4),
    num_samples=st.integers(1, 200),
    position=st.integers(0, 10_000),
    data=st.data(),
)
def test_slots_of_all_ranks_are_the_batch_in_order(
    slots: int, microbatch: int, num_samples: int, position: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, slots))
    sampler = GlobalSampler(num_samples, slots * microbatch, microbatch, seed=1)
    dealt = [sampler.slots(position, world) for world in worlds(size)]
    real = [slot for rank in dealt for slot in rank if not slot.is_padding]
    assert [slot.index for slot in real] == list(range(slots))
    assert np.array_equal(np.concatenate([slot.ids for slot in real]), sampler.batch(position))


@given(slots=st.integers(1, 16), data=st.data())
def test_every_rank_runs_the_same_number_of_passes(slots: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, slots))
    sampler = GlobalSampler(100, slots, 1, seed=1)
    counts = {len(sampler.slots(0, world)) for world in worlds(size)}
    assert counts == {-(-slots // size)}


@given(slots=st.integers(1, 16), data=st.data())
def test_average_over_ranks_of_weights_is_one(slots: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, slots))
    sampler = GlobalSampler(100, slots, 1, seed=1)
    total = sum(slot.weight for world in worlds(size) for slot in sampler.slots(0, world))
    assert total / size == pytest.approx(1)


def test_padding_repeats_the_last_slot_of_its_rank_with_weight_zero() -> None:
    sampler = GlobalSampler(100, 10, 2, seed=0)  # 5 slots: ranks own 2, 2, 1
    *_, real, padding = sampler.slots(0, World(rank=2, world_size=3))
    assert padding.weight == 0
    assert padding.is_padding
    assert padding.ids.tolist() == real.ids.tolist()


def test_batches_cross_epochs_without_padding_or_dropping() -> None:
    sampler = GlobalSampler(num_samples=7, global_size=4, microbatch=2, seed=5)
    ids = np.concatenate([sampler.batch(position) for position in range(0, 28, 4)])
    assert all(sorted(ids[i : i + 7].tolist()) == list(range(7)) for i in range(0, 28, 7))
    assert [sampler.epoch(position) for position in (0, 6, 7, 27)] == [0, 0, 1, 3]


def test_more_ranks_than_slots_are_refused_with_the_remedy() -> None:
    sampler = GlobalSampler(100, 4, 2, seed=0)
    with pytest.raises(
        ConfigError, match=r"world size 3, but .* only 2 slots .*world size 2 or less"
    ):
        sampler.slots(0, World(rank=0, world_size=3))


def test_microbatch_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch\.microbatch = 5"):
        GlobalSampler(100, 24, 5, seed=0)
