"""Which blocks are read together: each once, in place where one piece alone wants all of it."""

import random

import pytest

from keepstep.checkpoint.pieces import DirectPiece
from keepstep.checkpoint.stretches import FilePieces
from keepstep.commit.blocks import FileBlocks

BLOCK = 16
IN_PLACE = 2 * BLOCK


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keepstep.commit.verified.READ_BYTES", 8 * BLOCK)


def file_of(data: bytes) -> FileBlocks:
    return FileBlocks("f", len(data), "", BLOCK, (0,) * -(-len(data) // BLOCK))


def piece(start: int, stop: int) -> tuple[DirectPiece, bytearray]:
    memory = bytearray(stop - start)
    return DirectPiece(start, memoryview(memory)), memory


def load(data: bytes, pieces: FilePieces) -> int:
    """What a reader does, without storage; returns bytes read."""
    bytes_read = 0
    for stretch in pieces.stretches(pieces.needed):
        start = stretch.numbers.start * BLOCK
        part = data[start : stretch.numbers.stop * BLOCK]
        bytes_read += len(part)
        if stretch.piece is None:
            pieces.take(stretch.numbers, memoryview(bytearray(part)))
        else:
            stretch.piece.place(start, start + len(part))[:] = part
            stretch.piece.arrived(len(part))
    return bytes_read


def test_blocks_inside_one_piece_are_read_in_place_and_together() -> None:
    around, _ = piece(10, 10 * BLOCK + 3)
    found = FilePieces(file_of(bytes(20 * BLOCK)), [around], in_place_bytes=IN_PLACE).stretches(
        [range(11)]
    )
    assert [(s.numbers, s.piece) for s in found] == [
        (range(1), None),
        (range(1, 9), around),
        (range(9, 10), around),
        (range(10, 11), None),
    ]


def test_only_what_is_asked_for_is_read() -> None:
    around, _ = piece(0, 10 * BLOCK)
    found = FilePieces(file_of(bytes(20 * BLOCK)), [around], in_place_bytes=IN_PLACE).stretches(
        [range(2, 3), range(7, 9)]
    )
    assert [(s.numbers, s.piece) for s in found] == [(range(2, 3), around), (range(7, 9), around)]


def test_small_pieces_are_read_together_whatever_their_number() -> None:
    small = [piece(start, start + 2)[0] for start in range(0, 8 * BLOCK, 2)]
    pieces = FilePieces(file_of(bytes(8 * BLOCK)), small, in_place_bytes=IN_PLACE)
    (stretch,) = pieces.stretches(pieces.needed)
    assert (stretch.numbers, stretch.piece) == (range(8), None)


def test_blocks_that_nobody_wants_are_not_read() -> None:
    pieces = FilePieces(
        file_of(bytes(100 * BLOCK)), [piece(5, 6)[0], piece(1590, 1595)[0]], in_place_bytes=IN_PLACE
    )
    assert pieces.needed == [range(1), range(99, 100)]


def test_every_piece_gets_its_bytes_and_every_block_is_read_once() -> None:
    numbers = random.Random(5)
    for _ in range(200):
        data = numbers.randbytes(numbers.randint(1, 300))
        wanted = []
        for _ in range(numbers.randint(1, 8)):
            start = numbers.randrange(len(data))
            wanted.append((start, numbers.randint(start + 1, len(data))))
        made = [(start, stop, *piece(start, stop)) for start, stop in wanted]
        pieces = FilePieces(file_of(data), [p for _, _, p, _ in made], in_place_bytes=IN_PLACE)
        blocks = {n for start, stop in wanted for n in range(start // BLOCK, -(-stop // BLOCK))}
        assert load(data, pieces) == sum(len(data[n * BLOCK : (n + 1) * BLOCK]) for n in blocks)
        for start, stop, _, memory in made:
            assert memory == data[start:stop], "also where pieces overlap"
