"""What every store must do. Inherit, give a ``storage`` fixture, and pytest runs the suite against
it.

::

    class TestMyStorage(StorageConformance):
        @pytest.fixture
        def storage(self): return MyStorage(...)
"""

import mmap
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from keepstep.errors import InternalError, ObjectExists, ObjectNotFound
from keepstep.storage.base import Storage


class StorageConformance:
    """The suite. The store must be empty at the start of each test."""

    def test_put_then_get_returns_the_bytes(self, storage: Storage) -> None:
        storage.put("a/b", b"one")
        assert storage.get("a/b") == b"one"
        with storage.open_reader("a/b") as reader:
            assert reader.size_bytes == 3

    def test_put_replaces(self, storage: Storage) -> None:
        storage.put("a", b"one")
        storage.put("a", b"longer than before")
        assert storage.get("a") == b"longer than before"

    def test_empty_object_exists(self, storage: Storage) -> None:
        storage.put("empty", b"")
        assert storage.get("empty") == b""
        assert [info.key for info in storage.list("")] == ["empty"]

    @pytest.mark.parametrize(
        "data", [b"x", bytearray(b"x"), memoryview(b"x")], ids=["bytes", "bytearray", "view"]
    )
    def test_every_kind_of_buffer_is_taken(
        self, storage: Storage, data: bytes | bytearray | memoryview
    ) -> None:
        storage.put("put", data)
        storage.create("create", data)
        if storage.capabilities.append:
            with storage.open_appender("append") as log:
                log.append(data)
        with storage.open_writer("writer", 1) as writer:
            writer.write(0, data)
        assert {storage.get(info.key) for info in storage.list("")} == {b"x"}

    def test_missing_objects_are_named(self, storage: Storage) -> None:
        with pytest.raises(ObjectNotFound) as from_get:
            storage.get("no/such")
        with pytest.raises(ObjectNotFound) as from_reader, storage.open_reader("no/such"):
            pass
        assert {from_get.value.key, from_reader.value.key} == {"no/such"}

    def test_create_refuses_a_taken_name_and_leaves_it(self, storage: Storage) -> None:
        storage.create("a", b"first")
        with pytest.raises(ObjectExists):
            storage.create("a", b"second")
        assert storage.get("a") == b"first"

    def test_create_has_one_winner_among_racing_threads(self, storage: Storage) -> None:
        for race in range(10):
            outcomes: list[int] = []
            start = threading.Barrier(8)

            def attempt(
                number: int,
                key: str = f"race/{race}",
                start: threading.Barrier = start,
                outcomes: list[int] = outcomes,
            ) -> None:
                start.wait()
                try:
                    storage.create(key, b"%d" % number)
                except ObjectExists:
                    return
                outcomes.append(number)

            threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(outcomes) == 1
            assert storage.get(f"race/{race}") == b"%d" % outcomes[0]

    @pytest.mark.parametrize("piece_bytes", [1, 4096, 100_000, 1 << 20])
    def test_writer_takes_pieces_in_any_order(self, storage: Storage, piece_bytes: int) -> None:
        pieces = [bytes([number]) * piece_bytes for number in range(30)]
        numbers = list(range(30))
        random.Random(0).shuffle(numbers)
        with storage.open_writer("big", 30 * piece_bytes) as writer:
            for number in numbers:
                writer.write(number * piece_bytes, pieces[number])
        assert storage.get("big") == b"".join(pieces)

    def test_writer_takes_pieces_from_several_threads(self, storage: Storage) -> None:
        size = 1 << 20
        with (
            storage.open_writer("threads", 16 * size + 5) as writer,
            ThreadPoolExecutor(4) as threads,
        ):
            writes = [
                threads.submit(writer.write, number * size, bytes([number]) * size)
                for number in range(16)
            ]
            writer.write(16 * size, b"tail.")
            for write in writes:
                write.result()
        expected = b"".join(bytes([number]) * size for number in range(16)) + b"tail."
        assert storage.get("threads") == expected

    def test_writer_buffer_may_be_reused_at_once(self, storage: Storage) -> None:
        buffer = mmap.mmap(-1, 2 << 20)  # aligned to pages
        with storage.open_writer("reused", 3 * len(buffer)) as writer:
            for number in range(3):
                buffer[:] = bytes([number]) * len(buffer)
                writer.write(number * len(buffer), memoryview(buffer))
        assert storage.get("reused") == b"".join(
            bytes([number]) * len(buffer) for number in range(3)
        )

    def test_writer_refuses_a_taken_name_and_leaves_it(self, storage: Storage) -> None:
        storage.put("a", b"first")
        with pytest.raises(ObjectExists), storage.open_writer("a", 6) as writer:
            writer.write(0, b"second")
        assert storage.get("a") == b"first"

    def test_failed_writer_leaves_nothing(self, storage: Storage) -> None:
        with pytest.raises(ZeroDivisionError), storage.open_writer("a/half", 8) as writer:
            writer.write(0, b"half")
            raise ZeroDivisionError
        assert list(storage.list("")) == []

    def test_append_adds_to_the_end(self, storage: Storage) -> None:
        if not storage.capabilities.append:
            pytest.skip("this store cannot append")
        with storage.open_appender("log") as log:
            log.append(b"one\n")
            log.append(b"two\n")
            assert storage.get("log") == b"one\ntwo\n"
        with storage.open_appender("log") as log:
            log.append(b"three\n")
        assert storage.get("log") == b"one\ntwo\nthree\n"

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [(0, 10, b"0123456789"), (3, 4, b"3456"), (8, 10, b"89"), (10, 3, b""), (20, 3, b"")],
    )
    def test_range_reads(self, storage: Storage, offset: int, length: int, expected: bytes) -> None:
        storage.put("digits", b"0123456789")
        buffer = bytearray(length)
        with storage.open_reader("digits") as reader:
            assert reader.read_into(offset, memoryview(buffer)) == len(expected)
        assert buffer[: len(expected)] == expected

    @pytest.mark.parametrize("shift", [0, 64])
    def test_threads_read_one_large_object_at_once(self, storage: Storage, shift: int) -> None:
        data = bytes(range(251)) * 40_000  # 10 MB: no block is like another
        storage.put("large", data)
        step = 3 << 20
        memory = memoryview(bytearray(shift + len(data)))[shift:]
        with storage.open_reader("large") as reader:

            def read(offset: int) -> None:
                reader.read_into(offset, memory[offset : offset + step])

            offsets = range(0, len(data), step)
            threads = [threading.Thread(target=read, args=(offset,)) for offset in offsets]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert memory == data

    def test_list_is_sorted_recursive_and_by_prefix(self, storage: Storage) -> None:
        for key in ("b/2", "b/10", "a", "b/1/x", "c/1", "bb/1"):
            storage.put(key, key.encode())
        assert [info.key for info in storage.list("")] == sorted(
            ["b/2", "b/10", "a", "b/1/x", "c/1", "bb/1"]
        )
        assert [(info.key, info.size_bytes) for info in storage.list("b/")] == [
            ("b/1/x", 5),
            ("b/10", 4),
            ("b/2", 3),
        ]
        assert list(storage.list("none/")) == []

    def test_listing_sees_every_write_and_delete_at_once(self, storage: Storage) -> None:
        for number in range(20):
            storage.put(f"n/{number:03}", b"")
            assert len(list(storage.list("n/"))) == number + 1
        storage.delete(f"n/{number:03}" for number in range(20))
        assert list(storage.list("n/")) == []

    def test_delete_ignores_what_is_not_there(self, storage: Storage) -> None:
        storage.put("a/b/c", b"1")
        storage.put("a/d", b"2")
        storage.delete(["a/b/c", "a/b/none"])
        assert [info.key for info in storage.list("")] == ["a/d"]

    def test_a_name_can_be_used_again_after_delete(self, storage: Storage) -> None:
        storage.create("a/b", b"1")
        storage.delete(["a/b"])
        storage.create("a/b", b"2")
        assert storage.get("a/b") == b"2"

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a b", "a\nb", "a\\b"]
    )
    def test_illegal_keys_are_refused(self, storage: Storage, key: str) -> None:
        with pytest.raises(InternalError):
            storage.put(key, b"")
