"""From "this region of that chunk" to ranges of its bytes: the geometry of a load, no I/O.

A chunk lies in its file in row-major order, so rows that follow each other are one range. A region
cut along an inner dimension is many short ranges; where the gaps between them are small they are
read together with the gaps, some rows at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from keepstep.commit.blocks import BLOCK_BYTES

Slices = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of a chunk that are read together."""

    start: int
    """Elements from the start of the chunk."""
    shape: tuple[int, ...]
    """Of the rows, with as many dimensions as the chunk."""
    wanted: Slices
    """The region's part of the rows."""
    place: Slices
    """Where that part belongs in the destination, which has the shape of the region."""

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether all of the rows is wanted."""
        return all(s.stop - s.start == n for s, n in zip(self.wanted, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class Cut:
    """How large a span may be."""

    most_elements: int
    """In a span whose rows hold more than is wanted, or that waits in a buffer. One element of the
    leading dimensions may still be larger."""
    least_gap_elements: int
    """A gap that is worth skipping."""
    joins_rows: bool
    """Whether rows that are wanted whole stay together, however many they are."""


def byte_cut(itemsize: int, *, most_bytes: int, joins_rows: bool) -> Cut:
    """By bytes. Gaps of less than a checksum block cost nothing: the block is read anyway."""
    return Cut(max(1, most_bytes // itemsize), max(1, BLOCK_BYTES // itemsize), joins_rows)


def spans(
    shape: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], cut: Cut
) -> Iterator[Span]:
    """Cover a region of a chunk, in file order. Every element of it is in one span.

    Args:
        shape: Of the chunk.
        offsets: Of the region in the chunk, by dimension.
        lengths: Of the region, by dimension.
    """
    if not shape:
        yield Span(0, (), (), ())
    elif 0 not in lengths:
        yield from _Region(tuple(shape), tuple(offsets), tuple(lengths), cut).spans(0, 0, ())


@dataclass(frozen=True, slots=True)
class _Region:
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    cut: Cut

    def spans(self, dimension: int, start: int, leading: Slices) -> Iterator[Span]:
        """The spans below one index of each leading dimension."""
        row = prod(self.shape[dimension + 1 :])
        start += self.offsets[dimension] * row
        if rows := self._rows_together(dimension, row):
            yield from self._cut_rows(dimension, start, leading, rows)
            return
        for index in range(self.lengths[dimension]):
            place = (*leading, slice(index, index + 1))
            yield from self.spans(dimension + 1, start + index * row, place)

    def _rows_together(self, dimension: int, row: int) -> int:
        """How many indices of this dimension make a span; 0 to cut along the next dimension."""
        is_whole = self.lengths[dimension + 1 :] == self.shape[dimension + 1 :]
        if is_whole and self.cut.joins_rows:
            return self.lengths[dimension]
        is_last = dimension == len(self.shape) - 1
        if not is_last and row > self.cut.most_elements:
            return 0
        if is_whole or row - self._extent(dimension) < self.cut.least_gap_elements:
            return max(1, self.cut.most_elements // row)
        return 0

    def _extent(self, dimension: int) -> int:
        """Elements from the first to the last one wanted in a row."""
        inner = range(dimension + 1, len(self.shape))
        return 1 + sum((self.lengths[d] - 1) * prod(self.shape[d + 1 :]) for d in inner)

    def _cut_rows(self, dimension: int, start: int, leading: Slices, rows: int) -> Iterator[Span]:
        inner = self.shape[dimension + 1 :]
        row = prod(inner)
        ends = zip(self.offsets[dimension + 1 :], self.lengths[dimension + 1 :], strict=True)
        wanted = tuple(slice(offset, offset + length) for offset, length in ends)
        whole = tuple(slice(0, length) for length in self.lengths[dimension + 1 :])
        ones = (1,) * dimension
        firsts = tuple(slice(0, 1) for _ in ones)
        for first in range(0, self.lengths[dimension], rows):
            count = min(rows, self.lengths[dimension] - first)
            yield Span(
                start + first * row,
                (*ones, count, *inner),
                (*firsts, slice(0, count), *wanted),
                (*leading, slice(first, first + count), *whole),
            )
