import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.data.token_run import TokenRun


def split(tokens: np.ndarray, cuts: list[int]) -> TokenRun:
    return TokenRun(np.split(tokens, sorted(cuts)))


@given(
    length=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    bounds=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_parts_read_as_one_array_wherever_they_are_cut(
    length: int, cuts: list[int], bounds: tuple[int, int]
) -> None:
    tokens = np.arange(length, dtype=np.uint16)
    run = split(tokens, [min(cut, length) for cut in cuts])
    start, stop = sorted(min(bound, length) for bound in bounds)
    assert len(run) == length
    assert run.read(start, stop).tolist() == list(range(start, stop))
    part = run.part(start, stop)
    assert part.read(0, len(part)).tolist() == list(range(start, stop))


def test_windows_overlap_by_the_token_to_predict() -> None:
    run = split(np.arange(95, dtype=np.uint8), [13, 14, 85])
    assert run.num_windows(10) == 9
    rows = run.windows(np.array([0, 8]), 10)
    assert rows.tolist() == [list(range(11)), list(range(80, 91))]


@pytest.mark.parametrize(("length", "count"), [(0, 0), (1, 0), (10, 0), (11, 1), (20, 1), (21, 2)])
def test_number_of_windows_counts_the_token_after_the_last(length: int, count: int) -> None:
    assert TokenRun([np.zeros(length, dtype=np.uint8)]).num_windows(10) == count
