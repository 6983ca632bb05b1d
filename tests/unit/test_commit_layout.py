"""Names: their order is the order of steps, and only exact names are parsed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.commit.layout import (
    CheckpointId,
    generation_key,
    index_filename,
    index_rank,
    new_attempt,
    parse_generation,
)

steps = st.integers(0, 10**12 - 1)
generations = st.integers(0, 10**6 - 1)


@given(steps, generations)
def test_names_parse_to_what_they_were_made_of(step: int, generation: int) -> None:
    checkpoint = CheckpointId(step, generation, new_attempt())
    assert CheckpointId.parse(checkpoint.name) == checkpoint
    assert parse_generation(generation_key(generation)) == generation


@given(st.tuples(steps, generations), st.tuples(steps, generations))
def test_names_sort_as_steps_do(one: tuple[int, int], other: tuple[int, int]) -> None:
    first, second = (CheckpointId(step, generation, "0" * 12) for step, generation in (one, other))
    assert (first.name < second.name) == (first < second)


@pytest.mark.parametrize(
    "name",
    [
        "000000000010-g000001-00112233445",
        "000000000010-g000001-0011223344556",
        "000000000010-g000001-00112233445X",
        "x000000000010-g000001-001122334455",
        "000000000010-g000001-001122334455.bak",
        "10-g1-001122334455",
        "",
    ],
)
def test_what_merely_looks_like_a_name_is_not_one(name: str) -> None:
    assert CheckpointId.parse(name) is None


def test_index_names() -> None:
    assert index_rank(index_filename(12)) == 12
    assert index_rank("__12_0.distcp") is None
