"""The suite of the contract, run against every store, and what is particular to a directory."""

import ctypes
import errno
import os
import stat
from pathlib import Path

import pytest

from keepstep.errors import ConfigError, ObjectExists, StorageDenied, StorageFull
from keepstep.storage import local, local_writing
from keepstep.storage.local import LocalStorage
from keepstep.storage.opening import open_storage
from keepstep.testing.conformance import StorageConformance
from keepstep.testing.memory_storage import MemoryStorage


class TestMemoryStorage(StorageConformance):
    @pytest.fixture
    def storage(self) -> MemoryStorage:
        return MemoryStorage()


class TestLocalStorage(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> LocalStorage:
        return LocalStorage(tmp_path / "store")


class TestLocalStorageWithoutHardLinks(StorageConformance):
    """As on file systems such as FAT or some FUSE mounts: create falls back to renameat2."""

    @pytest.fixture
    def storage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(local.os, "link", refuse)
        return LocalStorage(tmp_path / "store")


class Synced:
    """Records what was fsynced, by path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[Path] = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            self.paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            real(descriptor)

        monkeypatch.setattr(local.os, "fsync", fsync)


@pytest.mark.parametrize("verb", ["put", "create", "open_writer"])
def test_file_and_every_new_directory_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    storage = LocalStorage(tmp_path / "store")
    synced = Synced(monkeypatch)
    if verb == "open_writer":
        with storage.open_writer("a/b/object", 1) as writer:
            writer.write(0, b"x")
    else:
        getattr(storage, verb)("a/b/object", b"x")
    directories = [path for path in synced.paths if path.is_dir()]
    assert set(directories) == {
        tmp_path,
        tmp_path / "store",
        tmp_path / "store/a",
        tmp_path / "store/a/b",
    }
    assert synced.paths[-1] == tmp_path / "store/a/b", "the directory entry is synced last"
    assert len(synced.paths) > len(directories), "the file itself is synced"


def test_directories_that_another_process_made_are_synced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store/a/b").mkdir(parents=True)
    storage = LocalStorage(tmp_path / "store")
    synced = Synced(monkeypatch)
    storage.put("a/b/object", b"x")
    assert {path for path in synced.paths if path.is_dir()} == {
        tmp_path,
        tmp_path / "store",
        tmp_path / "store/a",
        tmp_path / "store/a/b",
    }
    synced.paths.clear()
    storage.put("a/b/other", b"x")
    assert {path for path in synced.paths if path.is_dir()} == {tmp_path / "store/a/b"}


def test_leftover_temporaries_are_not_listed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/object", b"x")
    (tmp_path / "a/.tmp-0123").write_bytes(b"left by a killed writer")
    assert [info.key for info in storage.list("")] == ["a/object"]


def test_lost_reply_of_a_link_that_succeeded_is_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link_twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(local.os, "link", link_twice)
    storage = LocalStorage(tmp_path)
    storage.create("a", b"ours")
    assert storage.get("a") == b"ours"


def test_exclusive_create_is_refused_where_the_file_system_cannot_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(local.os, "link", refuse)
    monkeypatch.setattr(local.sys, "platform", "other")
    storage = LocalStorage(tmp_path)
    with pytest.raises(OSError, match="exclusive create is impossible"):
        storage.create("a", b"")
    assert list(storage.list("")) == []


def test_permission_refused_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(local.os, "preadv", refuse)
    storage.put("a", b"x")
    with storage.open_reader("a") as reader, pytest.raises(StorageDenied) as caught:
        reader.read_into(0, memoryview(bytearray(1)))
    assert caught.value.key == "a"


def test_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local, "sync_file", fail)
    monkeypatch.setattr(local_writing, "sync_file", fail)
    with pytest.raises(StorageFull), storage.open_writer("steps/shard", 1) as writer:
        writer.write(0, b"x")
    with pytest.raises(StorageFull):
        storage.create("manifest", b"x")
    assert list(storage.list("")) == []


def test_a_full_disk_shows_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: int) -> int:
        ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr(local_writing, "_fallocate", lambda: no_room)
    storage = LocalStorage(tmp_path)
    with pytest.raises(StorageFull), storage.open_writer("steps/shard", 1 << 20):
        pytest.fail("the writer was handed out")
    assert list(storage.list("")) == []


@pytest.mark.parametrize("refused", ["open", "write", "allocate"])
def test_a_file_system_without_direct_writes_is_written_through_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    real_open, real_pwrite, direct = os.open, os.pwrite, set()

    def open_file(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT and refused == "open":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        descriptor = real_open(path, flags, mode)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if descriptor in direct and refused == "write":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_pwrite(descriptor, data, offset)

    monkeypatch.setattr(local_writing.os, "open", open_file)
    monkeypatch.setattr(local_writing.os, "pwrite", pwrite)
    if refused == "allocate":
        monkeypatch.setattr(local_writing, "_fallocate", lambda: None)
    data = bytes(range(256)) * 8192
    storage = LocalStorage(tmp_path)
    with storage.open_writer("steps/shard", len(data)) as writer:
        writer.write(0, data[: 1 << 20])
        writer.write(1 << 20, data[1 << 20 :])
    assert storage.get("steps/shard") == data


def test_objects_are_readable_by_the_group(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a", b"")
    assert (tmp_path / "a").stat().st_mode & stat.S_IRUSR


def test_open_storage_takes_paths_and_file_uris(tmp_path: Path) -> None:
    assert open_storage(str(tmp_path)).uri == str(tmp_path)
    assert open_storage(f"file://{tmp_path}").uri == str(tmp_path)
    with pytest.raises(ConfigError, match="'gopher'"):
        open_storage("gopher://x")
    with pytest.raises(ConfigError, match="names no directory"):
        open_storage("file://relative")


def test_create_never_replaces_a_directory_entry_of_another_process(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"theirs")
    with pytest.raises(ObjectExists):
        LocalStorage(tmp_path).create("taken", b"ours")
    assert (tmp_path / "taken").read_bytes() == b"theirs"
