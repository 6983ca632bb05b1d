import random
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from keepstep.errors import InternalError
from keepstep.storage.parts import Parts


class Sent:
    """What was sent, by part."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.views: dict[int, memoryview] = {}

    def __call__(self, number: int, data: memoryview) -> None:
        assert number not in self.parts, "every part is sent once"
        self.parts[number] = bytes(data)
        self.views[number] = data

    def joined(self) -> bytes:
        return b"".join(self.parts[number] for number in sorted(self.parts))


@pytest.mark.parametrize("size_bytes", [0, 1, 9, 10, 11, 30, 35])
@pytest.mark.parametrize("piece_bytes", [1, 3, 10, 12, 50])
def test_pieces_in_any_order_become_parts_of_one_size(size_bytes: int, piece_bytes: int) -> None:
    data = bytes(range(size_bytes))
    starts = list(range(0, size_bytes, piece_bytes))
    random.Random(size_bytes).shuffle(starts)
    sent = Sent()
    parts = Parts(size_bytes, 10, sent)
    for start in starts:
        parts.write(start, data[start : start + piece_bytes])
    parts.finish()
    assert sent.joined() == data
    assert len(sent.parts) == parts.count == max(1, -(-size_bytes // 10))
    assert {len(part) for number, part in sent.parts.items() if number < parts.count - 1} <= {10}


def test_a_piece_that_covers_a_part_is_sent_from_where_it_is() -> None:
    data = bytearray(25)
    sent = Sent()
    Parts(25, 10, sent).write(0, data)
    assert [view.obj is data for view in sent.views.values()] == [True] * 3


def test_a_piece_across_a_border_leaves_its_ends_in_two_parts() -> None:
    sent = Sent()
    parts = Parts(30, 10, sent)
    parts.write(5, b"x" * 20)
    assert set(sent.parts) == {1}
    parts.write(0, b"a" * 5)
    parts.write(25, b"z" * 5)
    assert sent.joined() == b"a" * 5 + b"x" * 20 + b"z" * 5


def test_a_part_of_many_pieces_takes_one_buffer() -> None:
    part_bytes = 1 << 20
    parts = Parts(part_bytes, part_bytes, Sent())
    piece = bytes(part_bytes // 16)
    tracemalloc.start()
    try:
        for start in range(0, part_bytes - len(piece), len(piece)):
            parts.write(start, piece)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.5 * part_bytes


def test_threads_complete_every_part_once() -> None:
    data = random.Random(0).randbytes(100_003)
    sent = Sent()
    parts = Parts(len(data), 1000, sent)
    start = threading.Barrier(8)

    def write(lane: int) -> None:
        start.wait()
        for low in range(lane * 7, len(data), 8 * 7):
            parts.write(low, data[low : low + 7])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    parts.finish()
    assert sent.joined() == data


def test_missing_bytes_are_found_out() -> None:
    parts = Parts(20, 10, Sent())
    parts.write(0, b"x" * 15)
    with pytest.raises(InternalError, match="15 of 20 bytes"):
        parts.finish()


def test_bytes_past_the_end_are_refused() -> None:
    with pytest.raises(InternalError, match="byte 21 of 20"):
        Parts(20, 10, Sent()).write(15, b"x" * 6)


def test_an_error_of_sending_reaches_whoever_completed_the_part() -> None:
    def refuse(number: int, data: memoryview) -> None:
        raise ConnectionError(f"part {number} of {len(data)} bytes")

    parts = Parts(20, 10, refuse)
    parts.write(0, b"x" * 9)
    with pytest.raises(ConnectionError, match="part 0 of 10"):
        parts.write(9, b"x")
