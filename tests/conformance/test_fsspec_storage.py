"""The suite of the contract over fsspec, and what is particular to its file systems."""

import errno
import gc
import os
import secrets
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from keepstep.errors import (
    ConfigError,
    InternalError,
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from keepstep.storage.fsspec_files import InOrder
from keepstep.storage.fsspec_storage import PART_BYTES, FsspecStorage
from keepstep.storage.opening import open_storage
from keepstep.storage.retrying import RetryPolicy
from keepstep.testing.conformance import StorageConformance

QUICKLY = RetryPolicy(attempts=3, longest_wait_seconds=0.01)


class FlakyFileSystem(MemoryFileSystem):
    """Fails as its ``failures`` say, by method: the next error, or ``None`` for a success."""

    protocol = "flaky"
    cachable = False

    def __init__(self, **failures: list[Exception | None]) -> None:
        super().__init__(global_store=False)
        self.failures = failures
        self.calls: list[str] = []

    def _hit(self, name: str) -> None:
        self.calls.append(name)
        planned = self.failures.get(name, [])
        if planned and (error := planned.pop(0)) is not None:
            raise error

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._hit("pipe_file")
        super().pipe_file(path, value, mode=mode, **kwargs)

    def cat_file(self, *args: Any, **kwargs: Any) -> bytes:
        self._hit("cat_file")
        return bytes(super().cat_file(*args, **kwargs))

    def find(self, *args: Any, **kwargs: Any) -> Any:
        self._hit("find")
        return super().find(*args, **kwargs)

    def ls(self, *args: Any, **kwargs: Any) -> Any:
        self._hit("ls")
        return super().ls(*args, **kwargs)


class HeedlessFileSystem(MemoryFileSystem):
    """Ignores that a creation was asked for, as packages without conditional writes do."""

    protocol = "heedless"
    cachable = False

    def __init__(self) -> None:
        super().__init__(global_store=False)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value, **kwargs)


def over(fs: Any, root: str = "/run", **settings: Any) -> FsspecStorage:
    return FsspecStorage(lambda: fs, root, uri="test://run", policy=QUICKLY, **settings)


class TestMemory(StorageConformance):
    @pytest.fixture
    def storage(self) -> Any:
        return open_storage(f"memory://{secrets.token_hex(4)}/run")


class TestMemoryWithASingleWriter(StorageConformance):
    @pytest.fixture
    def storage(self) -> Any:
        return open_storage(f"memory://{secrets.token_hex(4)}", single_writer=True)


class TestDirectoryOfFsspec(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> FsspecStorage:
        return over(LocalFileSystem(), str(tmp_path / "run"))


class TestWrappedDirectoryOfFsspec(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> FsspecStorage:
        return over(DirFileSystem(path=str(tmp_path), fs=LocalFileSystem()), "run")


class TestStoreThatIgnoresCreation(StorageConformance):
    @pytest.fixture
    def storage(self) -> FsspecStorage:
        return over(HeedlessFileSystem())


def test_a_store_that_ignores_creation_promises_no_exclusive_one() -> None:
    fs = HeedlessFileSystem()
    looking_first = over(fs)
    assert not looking_first.capabilities.exclusive_create
    trusting = over(fs, is_object_store=True, is_exclusive=True)
    trusting.create("a", b"first")
    trusting.create("a", b"second")
    assert trusting.get("a") == b"second", "this is why nobody is trusted without a probe"
    with pytest.raises(ObjectExists):
        looking_first.create("a", b"third")


def test_what_a_scheme_promises() -> None:
    assert open_storage("memory://x").capabilities.exclusive_create
    assert not open_storage("memory://x", single_writer=True).capabilities.exclusive_create
    assert not open_storage("memory://x").capabilities.append


def test_append_is_refused() -> None:
    with pytest.raises(StorageDenied, match="cannot be appended"):
        open_storage("memory://x").open_appender("log")


def test_an_unknown_scheme_and_a_missing_package_are_named() -> None:
    with pytest.raises(ConfigError, match="no store for the scheme 'gopher'"):
        open_storage("gopher://x")
    with pytest.raises(
        ConfigError, match="scheme 'dropbox' is missing; pip install dropboxdrivefs"
    ):
        open_storage("dropbox://x/y")
    with pytest.raises(ConfigError, match="chains stores"):
        open_storage("simplecache::memory://x")


def test_a_uri_shows_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote(MemoryFileSystem):
        protocol = "remote"

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            raise RuntimeError(f"no route with {options['password']}")

        @staticmethod
        def _get_kwargs_from_urls(uri: str) -> dict[str, str]:
            return {"password": "hunter2"}

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.rpartition("@")[2]

    fsspec.register_implementation("remote", Remote, clobber=True)
    storage = open_storage("remote://me:hunter2@host/run?sig=abcdef")
    assert storage.uri == "remote://me@host/run"
    with pytest.raises(StorageUnavailable) as caught:
        storage.get("a")
    assert "hunter2" not in f"{caught.value!s}{caught.value!r}"
    assert "no route with ***" in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError("no"), StorageDenied),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), StorageFull),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), StorageDenied),
        (RuntimeError("what a backend says"), StorageUnavailable),
        (NotImplementedError(), StorageDenied),
        (FileExistsError("x"), ObjectExists),
    ],
)
def test_errors_keep_their_meaning_and_their_cause(
    error: Exception, kind: type[StorageError]
) -> None:
    fs = FlakyFileSystem(pipe_file=[error])
    with pytest.raises(kind) as caught:
        over(fs, is_object_store=True).put("a/b", b"x")
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    assert caught.value.key == "a/b"
    assert fs.calls == ["pipe_file"], "what lasts is not tried again"


def error_with(name: str, value: object) -> Exception:
    error = Exception("from a backend")
    setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    "error",
    [TimeoutError(), ConnectionResetError(), error_with("code", "503"), error_with("status", 429)],
)
def test_what_passes_is_tried_again(error: Exception) -> None:
    fs = FlakyFileSystem(pipe_file=[error, error])
    storage = over(fs, is_object_store=True)
    storage.put("a", b"x")
    assert storage.get("a") == b"x"


@pytest.mark.parametrize(
    ("status", "kind"), [(403, StorageDenied), (404, ObjectNotFound), (412, ObjectExists)]
)
def test_statuses_of_backends_are_understood(status: int, kind: type[StorageError]) -> None:
    fs = FlakyFileSystem(cat_file=[error_with("status_code", status)])
    with pytest.raises(kind):
        over(fs).get("a")


@pytest.mark.parametrize("is_exclusive", [True, False])
def test_a_final_error_after_a_creation_in_doubt_is_an_unknown_outcome(is_exclusive: bool) -> None:
    fs = FlakyFileSystem(pipe_file=[TimeoutError(), PermissionError()])
    with pytest.raises(StorageUnavailable, match="an earlier try may still succeed") as caught:
        over(fs, is_object_store=True, is_exclusive=is_exclusive).create("a", b"x")
    assert isinstance(caught.value.__cause__, StorageDenied)


def test_a_refused_creation_is_refused() -> None:
    fs = FlakyFileSystem(pipe_file=[PermissionError()])
    with pytest.raises(StorageDenied):
        over(fs, is_object_store=True, is_exclusive=True).create("a", b"x")


def test_a_taken_name_that_cannot_be_read_back_is_taken() -> None:
    fs = FlakyFileSystem(pipe_file=[None, TimeoutError(), None], cat_file=[PermissionError()])
    storage = over(fs, is_object_store=True, is_exclusive=True)
    storage.create("a", b"another's")
    with pytest.raises(ObjectExists, match="by whom is not known"):
        storage.create("a", b"ours")


def test_a_creation_whose_reply_was_lost_is_a_success() -> None:
    class Losing(FlakyFileSystem):
        def pipe_file(self, *args: Any, **kwargs: Any) -> None:
            super().pipe_file(*args, **kwargs)
            if len(self.calls) == 1:
                raise TimeoutError

    storage = over(Losing(), is_object_store=True, is_exclusive=True)
    storage.create("a", b"ours")
    with pytest.raises(ObjectExists):
        storage.create("a", b"ours")


@pytest.mark.parametrize(
    ("error", "kind"), [(PermissionError(), StorageDenied), (OSError("x"), StorageUnavailable)]
)
@pytest.mark.parametrize(
    ("is_object_store", "method", "good_calls"),
    [(True, "find", 0), (False, "ls", 0), (False, "ls", 1)],
)
def test_a_listing_that_fails_is_never_an_empty_one(
    error: Exception, kind: type[StorageError], is_object_store: bool, method: str, good_calls: int
) -> None:
    fs = FlakyFileSystem()
    storage = over(fs, is_object_store=is_object_store)
    storage.put("a/b/c", b"x")
    fs.failures = {method: [None] * good_calls + [error]}
    with pytest.raises(kind):
        list(storage.list(""))


def test_a_failing_look_is_no_free_name() -> None:
    class Blind(MemoryFileSystem):
        cachable = False

        def info(self, path: str, **kwargs: Any) -> Any:
            raise PermissionError(path)

    with pytest.raises(StorageDenied):
        over(Blind(global_store=False)).create("a", b"x")


def test_a_range_that_is_cut_short_is_read_again() -> None:
    class Cutting(FlakyFileSystem):
        def cat_file(self, *args: Any, **kwargs: Any) -> bytes:
            data = super().cat_file(*args, **kwargs)
            return data[:1] if self.calls.count("cat_file") == 1 else data

    fs = Cutting()
    storage = over(fs)
    storage.put("digits", b"0123456789")
    buffer = bytearray(4)
    with storage.open_reader("digits") as reader:
        assert reader.read_into(2, memoryview(buffer)) == 4
    assert buffer == b"2345"
    assert fs.calls.count("cat_file") == 2


def test_each_thread_has_a_file_system_of_its_own() -> None:
    made: list[int] = []

    def connect() -> MemoryFileSystem:
        made.append(threading.get_ident())
        return MemoryFileSystem()

    storage = FsspecStorage(connect, f"/{secrets.token_hex(4)}", uri="memory://x")
    storage.put("a", b"x")
    threads = [threading.Thread(target=storage.get, args=("a",)) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert len(made) == 4


class UploadedFile(AbstractBufferedFile):
    """Becomes an object when it is closed, as files of object stores do."""

    def _upload_chunk(self, final: bool = False) -> bool:
        self.fs.uploaded += self.buffer.getvalue()
        if final:
            self.fs.store_whole(self.path, self.fs.uploaded)
        return True

    def discard(self) -> None:
        self.fs.uploaded = b""


class UploadingFileSystem(MemoryFileSystem):
    cachable = False

    def __init__(self) -> None:
        super().__init__(global_store=False)
        self.uploaded = b""

    def store_whole(self, path: str, data: bytes) -> None:
        super().pipe_file(path, data)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode != "wb" or "data" in kwargs:
            return super()._open(path, mode, **kwargs)
        return UploadedFile(self, path, mode, block_size=kwargs.get("block_size"))


def test_a_failed_upload_is_thrown_away_and_not_completed() -> None:
    fs = UploadingFileSystem()
    storage = over(fs, is_object_store=True)
    size_bytes = 2 * PART_BYTES
    with pytest.raises(ZeroDivisionError), storage.open_writer("big", size_bytes) as writer:
        writer.write(0, bytes(PART_BYTES))
        raise ZeroDivisionError
    del writer
    gc.collect()  # a file that is thrown away open completes itself
    assert fs.uploaded == b""
    assert list(storage.list("")) == []
    with storage.open_writer("big", size_bytes) as writer:
        writer.write(PART_BYTES, bytes(PART_BYTES))
        writer.write(0, b"\1" * PART_BYTES)
    assert storage.get("big") == b"\1" * PART_BYTES + bytes(PART_BYTES)


def test_an_object_with_missing_bytes_is_refused() -> None:
    storage = open_storage(f"memory://{secrets.token_hex(4)}")
    for size_bytes in (8, 2 * PART_BYTES):
        with pytest.raises(InternalError), storage.open_writer("a", size_bytes) as writer:
            writer.write(0, b"half")
        assert list(storage.list("")) == []


def test_an_object_that_lost_bytes_on_its_way_is_an_error() -> None:
    class Losing(UploadingFileSystem):
        def store_whole(self, path: str, data: bytes) -> None:
            super().store_whole(path, data[:-1])

    storage = over(Losing(), is_object_store=True)
    with (
        pytest.raises(StorageUnavailable, match="of 8388609 bytes are there"),
        storage.open_writer("big", PART_BYTES + 1) as writer,
    ):
        writer.write(0, bytes(PART_BYTES + 1))
    assert list(storage.list("")) == []


def test_parts_reach_the_file_in_order() -> None:
    written: list[bytes] = []

    class File:
        def write(self, data: bytes) -> None:
            written.append(bytes(data))

    in_order = InOrder(File())
    for number in (2, 1, 0, 4, 3):
        in_order.send(number, memoryview(b"%d" % number))
    assert written == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("says_so", [True, False])
def test_a_rename_that_takes_only_free_names_still_replaces(tmp_path: Path, says_so: bool) -> None:
    class Strict(LocalFileSystem):
        cachable = False

        def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
            if not self.exists(path2):
                super().mv(path1, path2, **kwargs)
            elif says_so:
                raise FileExistsError(path2)

    storage = over(Strict(), str(tmp_path))
    storage.put("a", b"old")
    storage.put("a", b"new")
    assert storage.get("a") == b"new"
    assert [info.key for info in storage.list("")] == ["a"]


def test_a_file_half_written_by_a_killed_process_is_no_object(tmp_path: Path) -> None:
    class Dying(LocalFileSystem):
        cachable = False

        def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        def rm_file(self, path: str) -> None:
            raise OSError("dead already")

    with pytest.raises(KeyboardInterrupt):
        over(Dying(), str(tmp_path)).put("a/manifest", b"x")
    assert len(list((tmp_path / "a").iterdir())) == 1
    assert list(over(LocalFileSystem(), str(tmp_path)).list("")) == []


def test_a_stream_that_can_be_pipelined_is() -> None:
    asked: list[bool] = []

    class Pipelined(MemoryFileSystem):
        cachable = False

        def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
            file = super()._open(path, mode, **kwargs)
            file.set_pipelined = asked.append
            return file

    storage = over(Pipelined(global_store=False), is_object_store=True)
    with storage.open_writer("big", PART_BYTES + 1) as writer:
        writer.write(0, bytes(PART_BYTES + 1))
    assert asked == [True]
