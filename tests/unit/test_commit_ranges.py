"""Sets of block numbers as ranges."""

import random

from keepstep.commit.blocks import FileBlocks
from keepstep.commit.ranges import common, cut, merged, outside
from keepstep.commit.verified import unread


def numbers_in(ranges: list[range]) -> list[int]:
    return [number for numbers in ranges for number in numbers]


def random_ranges(numbers: random.Random) -> list[range]:
    starts = [numbers.randint(0, 40) for _ in range(numbers.randint(0, 8))]
    return [range(start, start + numbers.randint(0, 8)) for start in starts]


def test_they_are_sets() -> None:
    numbers = random.Random(11)
    for _ in range(300):
        one, other = random_ranges(numbers), random_ranges(numbers)
        first, second = set(numbers_in(one)), set(numbers_in(other))
        assert numbers_in(merged(one)) == sorted(first)
        assert numbers_in(outside(merged(one), 50)) == sorted(set(range(50)) - first)
        assert numbers_in(list(common(merged(one), merged(other)))) == sorted(first & second)


def test_neighbors_are_joined() -> None:
    assert merged([range(3, 5), range(3), range(7, 7), range(8, 9)]) == [range(5), range(8, 9)]


def test_a_range_is_cut_to_a_length() -> None:
    assert list(cut(range(2, 9), 3)) == [range(2, 5), range(5, 8), range(8, 9)]


def test_unread_blocks_are_those_that_nobody_has() -> None:
    files = {name: FileBlocks(name, 12, "", 1, (0,) * 12) for name in "ab"}
    found = unread(files, [{"a": [range(3)]}, {"a": [range(2, 6)], "b": [range(12)]}])
    assert found == [("a", range(6, 12))]
