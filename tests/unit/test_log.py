import errno
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from keepstep.errors import StorageError, StorageFull, StorageUnavailable
from keepstep.storage import log
from keepstep.storage.base import Appender, Buffer
from keepstep.storage.local import LocalStorage
from keepstep.storage.log import AppendedLog, SegmentedLog, open_log, read_log
from keepstep.testing.memory_storage import MemoryStorage

KEY = "ledger/g000001/rank-00000.jsonl"


class WithoutAppend(MemoryStorage):
    """A store whose puts can fail."""

    capabilities = replace(MemoryStorage.capabilities, append=False)

    def __init__(self) -> None:
        super().__init__()
        self.is_down = False
        self.puts: list[str] = []
        self.tried = threading.Event()

    def put(self, key: str, data: Buffer) -> None:
        self.puts.append(key)
        self.tried.set()
        if self.is_down:
            raise StorageUnavailable("down", key=key)
        super().put(key, data)


@pytest.fixture
def storage() -> WithoutAppend:
    return WithoutAppend()


@pytest.fixture
def open_segmented(
    storage: WithoutAppend, request: pytest.FixtureRequest
) -> Callable[[float], SegmentedLog]:
    def open_it(flush_seconds: float) -> SegmentedLog:
        opened = SegmentedLog(storage, KEY, flush_seconds=flush_seconds)
        request.addfinalizer(opened.close)
        return opened

    return open_it


def test_the_store_decides_the_kind(storage: WithoutAppend) -> None:
    assert isinstance(open_log(storage, KEY), SegmentedLog)
    assert isinstance(open_log(MemoryStorage(), KEY), AppendedLog)


def test_what_is_appended_can_be_read_on_either_kind() -> None:
    for storage in (MemoryStorage(), WithoutAppend()):
        opened = open_log(storage, KEY)
        assert read_log(storage, KEY) == b""
        opened.append(b"one\n")
        opened.append(b"two\n")
        opened.flush()
        assert read_log(storage, KEY) == b"one\ntwo\n"
        opened.append(b"three\n")
        opened.close()
        assert read_log(storage, KEY) == b"one\ntwo\nthree\n"


class Failing(MemoryStorage):
    """A store whose appends can fail."""

    is_full = False
    times_opened = 0

    def open_appender(self, key: str) -> AbstractContextManager[Appender]:
        self.times_opened += 1
        return super().open_appender(key)

    def _append(self, key: str, data: Buffer) -> None:
        if self.is_full:
            raise StorageFull("no space", key=key)
        super()._append(key, data)


def test_what_a_full_disk_refused_is_written_once_there_is_space() -> None:
    storage = Failing()
    opened = open_log(storage, KEY)
    opened.append(b"one\n")
    storage.is_full = True
    for line in (b"two\n", b"three\n"):
        with pytest.raises(StorageFull):
            opened.append(line)
    assert read_log(storage, KEY) == b"one\n"
    storage.is_full = False
    opened.append(b"four\n")
    opened.close()
    assert read_log(storage, KEY) == b"one\ntwo\nthree\nfour\n"


def test_a_file_is_opened_once_and_anew_after_an_error() -> None:
    storage = Failing()
    opened = open_log(storage, KEY)
    for line in (b"one\n", b"two\n"):
        opened.append(line)
    assert storage.times_opened == 1
    storage.is_full = True
    with pytest.raises(StorageFull):
        opened.append(b"three\n")
    storage.is_full = False
    opened.append(b"four\n")
    assert storage.times_opened == 2
    assert read_log(storage, KEY) == b"one\ntwo\nthree\nfour\n"


def test_a_line_that_comes_after_the_end_is_written_all_the_same() -> None:
    storage = Failing()
    opened = open_log(storage, KEY)
    opened.append(b"one\n")
    opened.close()
    opened.append(b"late\n")
    assert storage.times_opened == 2
    assert read_log(storage, KEY) == b"one\nlate\n"


def test_a_disk_that_refuses_at_the_end_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_log(LocalStorage(tmp_path), KEY)
    opened.append(b"one\n")
    real = os.close

    def close(descriptor: int) -> None:
        real(descriptor)
        raise OSError(errno.EDQUOT, "over quota")

    monkeypatch.setattr("keepstep.storage.local.os.close", close)
    with pytest.raises(StorageError, match="quota"):
        opened.close()


def test_what_was_flushed_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_log(LocalStorage(tmp_path), KEY)
    synced: list[int] = []
    monkeypatch.setattr("keepstep.storage.local.sync_file", synced.append)
    opened.append(b"one\n")
    assert not synced
    opened.flush()
    assert len(synced) == 1
    opened.close()


def test_the_end_of_a_disk_that_stays_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_MOST_WAITING_BYTES", 12)
    storage = Failing()
    storage.is_full = True
    opened = open_log(storage, KEY)
    for _ in range(2):
        with pytest.raises(StorageFull, match="no space"):
            opened.append(b"12345\n")
    with pytest.raises(StorageFull, match="is lost"):
        opened.append(b"67890\n")
    with pytest.raises(StorageFull, match="no space"):
        opened.close()


def test_the_end_of_a_log(storage: WithoutAppend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_SEGMENT_BYTES", 10)
    for store in (MemoryStorage(), storage):
        opened = open_log(store, KEY)
        for number in range(20):
            opened.append(b"%06d\n" % number)
            opened.flush()
        opened.close()
        assert read_log(store, KEY, last_bytes=7).endswith(b"000019\n")
        assert len(read_log(store, KEY, last_bytes=7)) < 30
    assert len(set(storage.puts)) == 10, "a segment ends once it has 10 bytes"


def test_a_segment_is_written_anew_until_it_is_full(storage: WithoutAppend) -> None:
    opened = SegmentedLog(storage, KEY)
    opened.append(b"one\n")
    opened.flush()
    opened.append(b"two\n")
    opened.close()
    assert storage.puts == ["ledger/g000001/rank-00000/000001.jsonl"] * 2


def test_nothing_new_is_not_written(storage: WithoutAppend) -> None:
    opened = SegmentedLog(storage, KEY)
    opened.flush()
    opened.append(b"one\n")
    opened.flush()
    opened.flush()
    opened.close()
    assert len(storage.puts) == 1


def test_it_is_written_without_being_asked(
    storage: WithoutAppend, open_segmented: Callable[[float], SegmentedLog]
) -> None:
    open_segmented(0.01).append(b"one\n")
    assert storage.tried.wait(30)


def test_a_failure_in_the_background_is_told_and_loses_nothing(
    storage: WithoutAppend, open_segmented: Callable[[float], SegmentedLog]
) -> None:
    storage.is_down = True
    opened = open_segmented(0.01)
    opened.append(b"one\n")
    told = threading.Event()
    for _ in range(3000):
        storage.tried.clear()
        assert storage.tried.wait(30)
        try:
            opened.append(b".")
        except StorageUnavailable:
            told.set()
            break
    assert told.is_set()
    storage.is_down = False
    opened.flush()
    opened.append(b"two\n")
    opened.flush()
    assert read_log(storage, KEY).startswith(b"one\n.")
    assert read_log(storage, KEY).endswith(b"two\n")


def test_a_flush_that_fails_says_so_and_the_next_one_makes_up_for_it(
    storage: WithoutAppend,
) -> None:
    opened = SegmentedLog(storage, KEY)
    opened.append(b"one\n")
    storage.is_down = True
    with pytest.raises(StorageUnavailable):
        opened.flush()
    with pytest.raises(StorageUnavailable):
        opened.append(b"two\n")
    storage.is_down = False
    opened.close()
    assert read_log(storage, KEY) == b"one\ntwo\n"


def test_what_does_not_reach_the_store_at_the_end_is_told(storage: WithoutAppend) -> None:
    opened = SegmentedLog(storage, KEY)
    opened.append(b"one\n")
    storage.is_down = True
    with pytest.raises(StorageUnavailable, match="down"):
        opened.close()


def test_a_flush_covers_what_was_added_while_another_was_under_way() -> None:
    class Slow(WithoutAppend):
        release = threading.Event()

        def put(self, key: str, data: Buffer) -> None:
            self.tried.set()
            assert self.release.wait(30)
            MemoryStorage.put(self, key, data)

    storage = Slow()
    opened = SegmentedLog(storage, KEY, flush_seconds=0.01)
    opened.append(b"one\n")
    assert storage.tried.wait(30)
    opened.append(b"two\n")
    threading.Timer(0.1, storage.release.set).start()
    opened.flush()
    assert read_log(storage, KEY) == b"one\ntwo\n"
    opened.close()


def test_a_flush_keeps_nobody_waiting_for_long(
    storage: WithoutAppend, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(log, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(storage, "put", lambda *_: release.wait(30))
    opened = SegmentedLog(storage, KEY)
    opened.append(b"one\n")
    with pytest.raises(StorageUnavailable, match="not written"):
        opened.flush()
    release.set()
    opened.close()


def test_what_waits_is_bounded(storage: WithoutAppend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_MOST_WAITING_BYTES", 12)
    storage.is_down = True
    opened = SegmentedLog(storage, KEY)
    opened.append(b"12345\n")
    opened.append(b"12345\n")
    with pytest.raises(StorageFull, match="is lost"):
        opened.append(b"67890\n")
    storage.is_down = False
    opened.close()
    assert read_log(storage, KEY) == b"12345\n12345\n"
