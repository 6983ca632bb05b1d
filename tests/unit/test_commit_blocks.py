"""Block checksums: the same however the bytes arrive, and wrong for any other bytes."""

from itertools import pairwise

import pytest
from awscrt.checksums import crc32c
from hypothesis import given
from hypothesis import strategies as st

from keepstep.commit.blocks import BlockHasher, FileBlocks
from keepstep.errors import InternalError


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6), st.integers(1, 70))
def test_any_cut_gives_the_same_checksums(data: bytes, cuts: list[int], block_bytes: int) -> None:
    hasher = BlockHasher(block_bytes)
    borders = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    for start, end in pairwise(borders):
        hasher.update(data[start:end])
    found = hasher.finish("file")
    blocks = [data[i : i + block_bytes] for i in range(0, len(data), block_bytes)]
    assert found.blocks == tuple(crc32c(block) for block in blocks)
    assert found.digest == f"crc32c:{crc32c(data):08x}"
    assert FileBlocks.from_json(found.to_json()) == found


@given(st.binary(min_size=1, max_size=100), st.data())
def test_any_flipped_bit_is_noticed(data: bytes, draw: st.DataObject) -> None:
    hasher = BlockHasher(32)
    hasher.update(data)
    found = hasher.finish("file")
    place = draw.draw(st.integers(0, len(data) * 8 - 1))
    damaged = bytearray(data)
    damaged[place // 8] ^= 1 << place % 8
    number = place // 8 // 32
    assert found.block_is_good(number, data[number * 32 : (number + 1) * 32])
    assert not found.block_is_good(number, damaged[number * 32 : (number + 1) * 32])


def test_a_short_block_is_not_good() -> None:
    hasher = BlockHasher(4)
    hasher.update(b"\0" * 8)
    assert not hasher.finish("file").block_is_good(0, b"\0" * 3)


def test_checksums_that_do_not_fold_to_the_digest_are_refused() -> None:
    hasher = BlockHasher(4)
    hasher.update(b"12345678")
    json = hasher.finish("file").to_json()
    json["blocks"].reverse()
    with pytest.raises(InternalError):
        FileBlocks.from_json(json)
