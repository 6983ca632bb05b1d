"""The geometry of a load: any region of any chunk, covered exactly, in bounded pieces."""

import random
from math import prod

import pytest
import torch

from keepstep.checkpoint.spans import Cut, Span, byte_cut, spans

MIB = 1 << 20


def assembled(
    chunk: torch.Tensor, offsets: tuple[int, ...], lengths: tuple[int, ...], found: list[Span]
) -> torch.Tensor:
    """The region, put together from the chunk's flat elements as a reader would."""
    region = torch.full(lengths, -1, dtype=chunk.dtype)
    flat = chunk.reshape(-1)
    for span in found:
        rows = flat[span.start : span.start + span.size].view(span.shape)
        assert (region[span.place] == -1).all(), "no element twice"
        region[span.place] = rows[span.wanted]
    return region


def test_every_region_is_covered_exactly() -> None:
    numbers = random.Random(3)
    for _ in range(500):
        shape = tuple(numbers.randint(1, 6) for _ in range(numbers.randint(0, 4)))
        offsets = tuple(numbers.randint(0, size - 1) for size in shape)
        lengths = tuple(
            numbers.randint(1, size - offset) for size, offset in zip(shape, offsets, strict=True)
        )
        cut = Cut(numbers.randint(1, 40), numbers.randint(1, 10), numbers.random() < 0.5)
        chunk = torch.arange(prod(shape)).view(shape)
        found = list(spans(shape, offsets, lengths, cut))
        starts = [span.start for span in found]
        assert starts == sorted(starts), "in file order"
        region = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
        assert torch.equal(assembled(chunk, offsets, lengths, found), chunk[region]), (shape, cut)


def test_rows_that_follow_each_other_are_one_span_of_any_size() -> None:
    cut = byte_cut(4, most_bytes=MIB, joins_rows=True)
    (span,) = spans((1000, 4096), (100, 0), (800, 4096), cut)
    assert (span.start, span.shape, span.is_whole) == (100 * 4096, (800, 4096), True)


def test_rows_that_wait_in_a_buffer_are_cut_to_its_size() -> None:
    cut = byte_cut(4, most_bytes=MIB, joins_rows=False)
    found = list(spans((1000, 4096), (100, 0), (800, 4096), cut))
    assert [span.shape[0] for span in found] == [64] * 12 + [32]


def test_columns_are_read_with_the_rows_around_them() -> None:
    cut = byte_cut(4, most_bytes=MIB, joins_rows=True)
    found = list(spans((1000, 4096), (0, 512), (1000, 512), cut))
    assert max(span.size for span in found) * 4 <= MIB
    assert sum(span.size for span in found) == 1000 * 4096


def test_gaps_larger_than_a_block_are_skipped() -> None:
    """Experts stacked in the first dimension, cut along the second: 8 MiB of every 64."""
    cut = byte_cut(4, most_bytes=8 * MIB, joins_rows=True)
    found = list(spans((4, 8192, 2048), (0, 1024, 0), (4, 1024, 2048), cut))
    assert [(span.shape, span.is_whole) for span in found] == [((1, 1024, 2048), True)] * 4


def test_one_row_larger_than_a_buffer_is_cut_inside() -> None:
    cut = byte_cut(1, most_bytes=MIB, joins_rows=False)
    found = list(spans((2, 5 * MIB), (0, 0), (2, 5 * MIB), cut))
    assert [span.size for span in found] == [MIB] * 10


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_nothing_is_no_span(shape: tuple[int, ...]) -> None:
    cut = byte_cut(4, most_bytes=MIB, joins_rows=True)
    assert list(spans(shape, (0,) * len(shape), shape, cut)) == []


def test_a_scalar_is_one_element() -> None:
    (span,) = spans((), (), (), byte_cut(4, most_bytes=MIB, joins_rows=True))
    assert (span.size, span.is_whole) == (1, True)
