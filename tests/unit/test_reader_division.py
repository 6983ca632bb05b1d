"""Who reads which block when several ranks need it."""

import random
from collections.abc import Iterable

from keepstep.checkpoint.division import Division, Part, divide
from keepstep.commit.ranges import merged

Wanted = list[dict[str, list[int]]]


def division_of(wanted: Wanted, bucket_blocks: int = 4) -> Division:
    needed = [{file: ranges(numbers) for file, numbers in w.items()} for w in wanted]
    return divide(needed, bucket_blocks=bucket_blocks)


def ranges(numbers: Iterable[int]) -> list[range]:
    return merged(range(number, number + 1) for number in numbers)


def blocks_of(parts: Iterable[Part]) -> list[tuple[str, int]]:
    return [(file, number) for file, numbers in parts for number in numbers]


def owned(division: Division, rank: int) -> int:
    return sum(bucket.num_blocks for bucket in division.buckets[rank])


def test_each_block_is_read_by_one_of_those_who_need_it_and_reaches_all_of_them() -> None:
    numbers = random.Random(7)
    for _ in range(100):
        wanted: Wanted = [
            {
                file: sorted(numbers.sample(range(30), numbers.randint(1, 20)))
                for file in numbers.sample("abc", numbers.randint(0, 3))
            }
            for _ in range(numbers.randint(1, 5))
        ]
        division = division_of(wanted)
        readers: list[tuple[str, int]] = []
        reached: list[set[tuple[str, int]]] = [set() for _ in wanted]
        for rank, files in enumerate(division.alone):
            alone = blocks_of(Part(file, found) for file in files for found in files[file])
            readers += alone
            reached[rank].update(alone)
        for owner, buckets in enumerate(division.buckets):
            for bucket in buckets:
                assert bucket.owner == owner
                assert owner in bucket.holders
                assert bucket.num_blocks <= 4
                readers += blocks_of(bucket.parts)
                for holder in bucket.holders:
                    reached[holder].update(blocks_of(bucket.parts))
        assert len(readers) == len(set(readers)), "1.0x from storage"
        for rank, files in enumerate(wanted):
            assert reached[rank] == {(file, n) for file, found in files.items() for n in found}


def test_what_all_ranks_need_is_divided_evenly_and_in_runs() -> None:
    division = division_of([{"a": list(range(1000))}] * 8, bucket_blocks=1000)
    assert [owned(division, rank) for rank in range(8)] == [125] * 8
    assert all(len(bucket.parts) == 1 for (bucket,) in division.buckets)


def test_single_blocks_of_many_sets_do_not_all_fall_to_one_rank() -> None:
    wanted: Wanted = [{f"f{n}": [0] for n in range(1, 9)}, *({f"f{n}": [0]} for n in range(1, 9))]
    assert owned(division_of(wanted), 0) <= 4


def test_shards_on_two_ranks_each_stay_within_their_pair() -> None:
    wanted: Wanted = [{"a": [0, 1]}, {"b": [0, 1]}, {"a": [0, 1]}, {"b": [0, 1]}]
    division = division_of(wanted)
    assert [owned(division, rank) for rank in range(4)] == [1, 1, 1, 1]
    holders = {bucket.holders for buckets in division.buckets for bucket in buckets}
    assert holders == {(0, 2), (1, 3)}


def test_nothing_shared_needs_no_round() -> None:
    division = division_of([{"a": [0]}, {"a": [1]}, {}])
    assert division.num_rounds == 0
    assert division.alone == ({"a": [range(1)]}, {"a": [range(1, 2)]}, {})
