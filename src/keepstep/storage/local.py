"""A directory of a POSIX file system as a store."""

import ctypes
import errno
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedWriter
from pathlib import Path

from keepstep.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from keepstep.storage.base import Buffer, Capabilities, ObjectInfo, Upload, check_key, check_prefix
from keepstep.storage.local_reading import FileReader
from keepstep.storage.local_writing import FileWriter, sync_file

TEMPORARY = ".tmp-"
"""What the name of a file begins with that is not whole yet."""
_TEMPORARY_NAME = re.compile(r"\.tmp-[0-9a-f]{16}\Z")
_NO_HARD_LINKS = {
    errno.EPERM,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
}
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


class LocalStorage:
    """Objects as files below a root directory, which is made by the first write.

    *Durability:* what the contract says, given a file system and disk that honor fsync. Files and
    every directory on the way to them are synced before a write returns.
    """

    capabilities = Capabilities(exclusive_create=True, append=True)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root).absolute()
        self._durable_directories: set[Path] = set()

    @property
    def uri(self) -> str:
        return str(self._root)

    def put(self, key: str, data: Buffer) -> None:
        path = self._path(key)
        with self._translated(key), self._temporary(path, data) as temporary:
            temporary.replace(path)
            _sync_directory(path.parent)

    def create(self, key: str, data: Buffer) -> None:
        path = self._path(key)
        with self._translated(key), self._temporary(path, data) as temporary:
            _rename_exclusively(temporary, path)
            try:
                _sync_directory(path.parent)
            except OSError as error:
                # The name may not survive power loss, so it must not be seen either. Its removal
                # may not survive it either: whatever went wrong, the object may still appear.
                with suppress(OSError):
                    path.unlink()
                raise StorageUnavailable(_sentence(error, path), key=key) from error

    def make_durable(self, key: str) -> None:
        path = self._path(key)
        with self._translated(key):
            with path.open("rb") as file:
                sync_file(file.fileno())
            for directory in path.parents:
                _sync_directory(directory)
                if directory == self._root:
                    break

    @contextmanager
    def open_writer(self, key: str, size_bytes: int) -> Iterator["_TranslatedWriter"]:
        path = self._path(key)
        with self._translated(key):
            self._make_durable_directory(path.parent)
            file = FileWriter(path)
        try:
            with self._translated(key):
                file.allocate(size_bytes)
            yield _TranslatedWriter(file, key, self._path(key))
            with self._translated(key):
                file.sync()
                _sync_directory(path.parent)
        except BaseException:
            # Only our own unfinished file is removed: opening it was exclusive.
            with suppress(OSError):
                path.unlink()
            raise
        finally:
            file.close()

    @contextmanager
    def open_appender(self, key: str) -> Iterator["_TranslatedAppender"]:
        path = self._path(key)
        with self._translated(key):
            self._make_durable_directory(path.parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with self._translated(key):
                appender = _TranslatedAppender(descriptor, key, path)
            yield appender
        finally:
            with self._translated(key):  # a network file system may refuse only now
                os.close(descriptor)

    def get(self, key: str) -> bytes:
        with self._translated(key):
            return self._path(key).read_bytes()

    @contextmanager
    def open_reader(self, key: str) -> Iterator["_TranslatedReader"]:
        with self._translated(key):
            file = FileReader(self._path(key))
        try:
            yield _TranslatedReader(file, key, self._path(key))
        finally:
            file.close()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        base = self._root / check_prefix(prefix)
        with self._translated(prefix or "."):
            found = sorted(_walk(base, prefix))
        for key, size_bytes in found:
            yield ObjectInfo(key, size_bytes)

    def delete(self, keys: Iterable[str]) -> None:
        parents = set()
        for key in keys:
            path = self._path(key)
            with self._translated(key):
                path.unlink(missing_ok=True)
            parents.add(path.parent)
        for parent in parents:
            self._remove_empty_directories(parent)

    def remove_directory(self, prefix: str) -> None:
        """Remove the directory that was used for ``prefix``, if nothing is in it."""
        with suppress(OSError):  # not empty, or gone already
            (self._root / check_prefix(prefix)).rmdir()

    def uploads(self, prefix: str) -> tuple[Upload, ...]:
        """Temporary files below ``prefix``: those of a writer that was killed stay for ever."""
        base = self._root / check_prefix(prefix)
        with self._translated(prefix or "."):
            return tuple(sorted(_unfinished(base, prefix), key=lambda upload: upload.key))

    def abort_upload(self, upload: Upload) -> None:
        self.delete([upload.key])

    def _translated(self, key: str) -> AbstractContextManager[None]:
        return _translated(key, self._root / key)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _temporary(self, path: Path, data: Buffer) -> Iterator[Path]:
        """``data``, durable in a file beside ``path``; gone afterwards unless it was renamed."""
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        try:
            with self._new_file(temporary) as file:
                file.write(data)
                file.flush()
                sync_file(file.fileno())
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _new_file(self, path: Path) -> BufferedWriter:
        try:
            self._make_durable_directory(path.parent)
            return path.open("xb")
        except FileNotFoundError:  # the directory was empty, and somebody has tidied it away
            self._make_durable_directory(path.parent)
            return path.open("xb")

    def _make_durable_directory(self, directory: Path) -> None:
        """Make a directory and its parents, and sync each into the one above.

        Below the root also those that are there already, once per process: whoever made them may
        have died before syncing.
        """
        if directory in self._durable_directories and directory.is_dir():
            return
        new = []
        for ancestor in (directory, *directory.parents):
            is_ours = ancestor == self._root or self._root in ancestor.parents
            if ancestor.is_dir() and (not is_ours or ancestor in self._durable_directories):
                break
            new.append(ancestor)
        for ancestor in reversed(new):
            ancestor.mkdir(exist_ok=True)
            _sync_directory(ancestor.parent)
            self._durable_directories.add(ancestor)

    def _remove_empty_directories(self, directory: Path) -> None:
        """Climb from an emptied directory, removing what is empty, but not the topmost ones.

        Those are shared by all writers, and another may be about to use them.
        """
        while self._root in directory.parent.parents:
            try:
                directory.rmdir()
            except OSError:
                break  # not empty, or gone already: nothing to tidy
            self._durable_directories.discard(directory)
            directory = directory.parent
        with suppress(OSError):
            _sync_directory(directory)


class _TranslatedWriter:
    def __init__(self, file: FileWriter, key: str, path: Path) -> None:
        self._file = file
        self._key = key
        self._path = path

    def write(self, offset: int, data: Buffer) -> None:
        with _translated(self._key, self._path):
            self._file.write(offset, data)

    def abandon(self) -> None:
        pass  # a disk takes a piece at once, or not at all


class _TranslatedAppender:
    """An open descriptor. On a network file system a line then needs no request of its own."""

    def __init__(self, descriptor: int, key: str, path: Path) -> None:
        self._descriptor = descriptor
        self._key = key
        self._path = path
        self._size_bytes = os.fstat(descriptor).st_size

    def append(self, data: Buffer) -> None:
        with _translated(self._key, self._path):
            try:
                # One call as a rule: a writer that is killed tears at most its last line.
                _write_all(self._descriptor, data)
            except OSError:
                with suppress(OSError):  # the error that matters is the first one
                    os.ftruncate(self._descriptor, self._size_bytes)
                raise
        self._size_bytes += len(data)

    def flush(self) -> None:
        with _translated(self._key, self._path):
            sync_file(self._descriptor)


class _TranslatedReader:
    def __init__(self, file: FileReader, key: str, path: Path) -> None:
        self._file = file
        self._key = key
        self._path = path

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> int:
        with _translated(self._key, self._path):
            return self._file.read_into(offset, buffer)


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        elif entry.is_file() and not entry.name.startswith(TEMPORARY):
            with suppress(FileNotFoundError):  # deleted between scan and stat
                yield prefix + entry.name, entry.stat().st_size


def _unfinished(directory: Path, prefix: str) -> Iterator[Upload]:
    for parent, _, names in os.walk(directory):
        below = Path(parent).relative_to(directory).as_posix()
        for name in filter(_TEMPORARY_NAME.match, names):
            key = f"{prefix}{name}" if below == "." else f"{prefix}{below}/{name}"
            with suppress(FileNotFoundError):  # its writer lives, and has just finished
                began = Path(parent, name).stat().st_mtime
                yield Upload(key, name, datetime.fromtimestamp(began, UTC))


def _rename_exclusively(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target`` if it is free. *Raises:* ``FileExistsError``."""
    try:
        os.link(source, target)
    except FileExistsError:
        # On NFS the reply to a link that succeeded may be lost and the call repeated by the kernel.
        if source.stat().st_nlink == 1:
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _rename_noreplace(source, target)


def _rename_noreplace(source: Path, target: Path) -> None:
    """renameat2(RENAME_NOREPLACE), for file systems without hard links."""
    number = errno.ENOSYS
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            arguments = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target))
            if libc.renameat2(*arguments, _RENAME_NOREPLACE) == 0:
                return
            number = ctypes.get_errno()
    if number == errno.EEXIST:
        raise FileExistsError(number, os.strerror(number), str(target))
    msg = "exclusive create is impossible here: neither hard links nor RENAME_NOREPLACE"
    raise OSError(number, msg, str(target))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


_KINDS: dict[int, type[StorageError]] = {
    errno.ENOENT: ObjectNotFound,
    errno.EEXIST: ObjectExists,
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EFBIG: StorageFull,
    errno.EACCES: StorageDenied,
    errno.EPERM: StorageDenied,
    errno.EROFS: StorageDenied,
}

_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EACCES: "give this user permission to read and write there",
    errno.EROFS: "mount it writable; after an error of the disk the kernel's log tells of it",
    errno.EIO: "the disk or its file system fails: see the kernel's log",
}


@contextmanager
def _translated(key: str, path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into the storage error that says what a caller can do about it."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, StorageUnavailable)
        raise kind(_sentence(error, path), key=key) from error


def _sentence(error: OSError, path: Path) -> str:
    """What is wrong, where, and what to do."""
    where = f"{error.strerror or error}: {error.filename or path}"
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{where}: {remedy}" if remedy else where
