"""Block checksums: the same however the bytes arrive, and wrong for any other bytes."""

from itertools import pairwise

import pytest
from awscrt.checksums import crc32c
from hypothesis import given
from hypothesis import strategies as st

from keepstep.commit.blocks import FileBlocks, fold_checksums, run_checksums
from keepstep.errors import InternalError


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6), st.integers(1, 70))
def test_any_cut_gives_the_same_checksums(data: bytes, cuts: list[int], block_bytes: int) -> None:
    borders = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    runs = [
        run_checksums(start, data[start:end], block_bytes)
        for start, end in reversed(list(pairwise(borders)))
    ]
    found = fold_checksums("file", runs, block_bytes)
    blocks = [data[i : i + block_bytes] for i in range(0, len(data), block_bytes)]
    assert list(found.blocks) == [crc32c(block) for block in blocks]
    assert found.digest == f"crc32c:{crc32c(data):08x}"
    assert FileBlocks.from_json(found.to_json()) == found


@given(st.binary(min_size=520, max_size=3000), st.integers(1, 3))
def test_many_blocks_fold_to_the_same_as_few(data: bytes, block_bytes: int) -> None:
    found = checksums(data, block_bytes)
    for numbers in (range(len(found.blocks)), range(3, len(found.blocks)), range(5, 7), range(0)):
        part = data[numbers.start * block_bytes : numbers.stop * block_bytes]
        assert found.folded(numbers) == crc32c(part)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_any_flipped_bit_is_noticed(data: bytes, draw: st.DataObject) -> None:
    found = checksums(data, 32)
    place = draw.draw(st.integers(0, len(data) * 8 - 1))
    damaged = bytearray(data)
    damaged[place // 8] ^= 1 << place % 8
    number = place // 8 // 32
    assert found.block_is_good(number, data[number * 32 : (number + 1) * 32])
    assert not found.block_is_good(number, damaged[number * 32 : (number + 1) * 32])


def test_a_short_block_is_not_good() -> None:
    assert not checksums(b"\0" * 8, 4).block_is_good(0, b"\0" * 3)


@pytest.mark.parametrize("offsets", [(0, 8), (4,), (0, 0), (0, 3)])
def test_runs_that_leave_gaps_or_overlap_are_refused(offsets: tuple[int, ...]) -> None:
    runs = [run_checksums(offset, b"1234", 16) for offset in offsets]
    with pytest.raises(InternalError, match="twice or not at all"):
        fold_checksums("file", runs, 16)


def test_checksums_that_do_not_fold_to_the_digest_are_refused() -> None:
    json = checksums(b"12345678", 4).to_json()
    json["blocks"] = json["blocks"][8:] + json["blocks"][:8]
    with pytest.raises(InternalError):
        FileBlocks.from_json(json)


def checksums(data: bytes, block_bytes: int) -> FileBlocks:
    return fold_checksums("file", [run_checksums(0, data, block_bytes)], block_bytes)
