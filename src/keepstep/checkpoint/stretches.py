"""Which blocks of a file a load needs, and which of them are read in one call."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from keepstep.checkpoint.pieces import Piece
from keepstep.commit.blocks import FileBlocks
from keepstep.commit.ranges import common, merged
from keepstep.commit.verified import calls


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive blocks that are read in one call."""

    numbers: range
    piece: Piece | None
    """The one piece that all of them lie inside; ``None`` if they are read into a buffer."""


class FilePieces:
    """The pieces of one file, by the blocks they lie in.

    Args:
        in_place_bytes: What is smaller is not read by itself, but with others into a buffer.
    """

    def __init__(self, blocks: FileBlocks, pieces: Iterable[Piece], *, in_place_bytes: int) -> None:
        self.blocks = blocks
        self._in_place_bytes = in_place_bytes
        self._pieces = sorted(pieces, key=lambda piece: piece.start)
        self._reach = list(accumulate((piece.stop for piece in self._pieces), max))
        self._in_place = list(self._find_in_place())

    @property
    def needed(self) -> list[range]:
        """The blocks in which the pieces lie, merged."""
        size = self.blocks.block_bytes
        return merged(range(piece.start // size, -(-piece.stop // size)) for piece in self._pieces)

    def stretches(self, wanted: Sequence[range]) -> list[Stretch]:
        """Group needed blocks, given as merged ranges, into calls, in file order."""
        found = []
        for numbers, piece in self._grouped():
            for part in common([numbers], wanted):
                found += [Stretch(call, piece) for call in calls(self.blocks, part)]
        return found

    def take(self, numbers: range, data: memoryview) -> None:
        """Give consecutive blocks, verified, to the pieces that want bytes of them."""
        base = numbers.start * self.blocks.block_bytes
        end = base + len(data)
        for index in range(bisect_right(self._reach, base), len(self._pieces)):
            piece = self._pieces[index]
            if piece.start >= end:
                break
            start, stop = max(piece.start, base), min(piece.stop, end)
            if start < stop:
                piece.take(start, data[start - base : stop - base])

    def _grouped(self) -> Iterator[tuple[range, Piece | None]]:
        """All needed blocks in file order: those of one piece alone, and the rest between them."""
        placed = self._in_place
        ends = [0, *(numbers.stop for numbers, _ in placed)]
        starts = [*(numbers.start for numbers, _ in placed), len(self.blocks.blocks)]
        between = [range(a, b) for a, b in zip(ends, starts, strict=True) if a < b]
        rest = [(numbers, None) for numbers in common(self.needed, between)]
        yield from sorted([*placed, *rest], key=lambda group: group[0].start)

    def _find_in_place(self) -> Iterator[tuple[range, Piece]]:
        """Blocks that lie wholly inside one piece and are no other's."""
        size = self.blocks.block_bytes
        earlier = [0, *self._reach[:-1]]
        later = [piece.start for piece in self._pieces[1:]] + [self.blocks.size_bytes]
        for piece, reach, following in zip(self._pieces, earlier, later, strict=True):
            inside = range(-(-piece.start // size), piece.stop // size)
            is_alone = reach <= piece.start and piece.stop <= following
            if is_alone and len(inside) * size >= self._in_place_bytes:
                yield inside, piece
