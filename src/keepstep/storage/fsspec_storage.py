"""Any file system that fsspec knows as a store."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from keepstep.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageUnavailable,
)
from keepstep.storage.base import Buffer, Capabilities, ObjectInfo, check_key, check_prefix
from keepstep.storage.doubt import Doubt
from keepstep.storage.fsspec_errors import cause_of, is_passing, tells, translated
from keepstep.storage.fsspec_files import (
    TEMPORARY,
    InOrder,
    discard,
    forget_listings,
    is_taken,
    open_stream,
    renames,
    size_of,
    walk,
    write_by_rename,
)
from keepstep.storage.parts import Parts
from keepstep.storage.retrying import Retrier, RetryPolicy

PART_BYTES = 8 << 20

_CREATING = threading.Lock()

T = TypeVar("T")


class FsspecStorage:
    """Objects as files of an fsspec file system, below a root.

    Args:
        connect: Makes the file system; called once in each thread, for many are not thread-safe.
        root: As the file system writes paths, without a slash at its end.
        uri: What people are told; without credentials.
        is_object_store: Files appear whole when they are closed, creation honors
            ``mode="create"``, and a listing may go below a prefix at once.
        is_exclusive: Whether to create by ``mode="create"``. Without, a create looks whether the
            name is free and then writes: right as long as no other process does the same.
        is_remote: Reading costs more than sending what was read to another rank.
        secrets: What no error may repeat.

    *Durability:* what the store says of a request that has succeeded.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        root: str,
        *,
        uri: str,
        is_object_store: bool = False,
        is_exclusive: bool = False,
        is_remote: bool = True,
        secrets: tuple[str, ...] = (),
        policy: RetryPolicy | None = None,
    ) -> None:
        self._connect = connect
        self._root = root.rstrip("/")
        self._uri = uri
        self._is_object_store = is_object_store
        self._secrets = secrets
        self._thread = threading.local()
        self._retrier = Retrier(policy or RetryPolicy(), is_passing=is_passing, cause=cause_of)
        self.capabilities = Capabilities(
            exclusive_create=is_exclusive, append=False, is_remote=is_remote
        )

    @property
    def uri(self) -> str:
        return self._uri

    def put(self, key: str, data: Buffer) -> None:
        path = self._path(key)
        self._run("put", key, lambda fs: self._write(fs, path, bytes(data)))

    def create(self, key: str, data: Buffer) -> None:
        path, sent, attempts = self._path(key), bytes(data), 0
        doubt = Doubt(is_passing)

        def create(fs: Any) -> None:
            nonlocal attempts
            attempts += 1
            is_exclusive = self.capabilities.exclusive_create
            if not is_exclusive and is_taken(fs, path):
                raise FileExistsError(path)
            with doubt.noted():
                if is_exclusive:
                    fs.pipe_file(path, sent, mode="create")
                else:
                    self._write(fs, path, sent)

        try:
            with self._creating(), doubt.told(key):
                self._run("create", key, create)
        except ObjectExists:
            # By ourselves, if the reply to an earlier attempt was lost.
            if attempts == 1 or self._found(key) != sent:
                raise

    @contextmanager
    def open_writer(self, key: str, size_bytes: int) -> Iterator[Parts]:
        if size_bytes <= PART_BYTES:
            yield from self._write_at_once(key, size_bytes)
            return
        path = self._path(key)
        with self._creating():
            fs, file = self._run("create", key, lambda fs: self._begin(fs, path))
        try:
            in_order = InOrder(file)
            parts = Parts(size_bytes, PART_BYTES, self._not_repeated("write", key, in_order.send))
            yield parts
            parts.finish()
            self._not_repeated("write", key, file.close)()
            self._check_size(key, size_bytes)
        except BaseException:
            discard(fs, file, path)
            raise

    def open_appender(self, key: str) -> NoReturn:
        raise StorageDenied("objects of this store cannot be appended to", key=key)

    def get(self, key: str) -> bytes:
        path = self._path(key)
        return bytes(self._run("get", key, lambda fs: fs.cat_file(path)))

    @contextmanager
    def open_reader(self, key: str) -> Iterator["_Reader"]:
        path = self._path(key)
        size_bytes = self._run("get", key, lambda fs: size_of(fs, path))

        def read(start: int, stop: int) -> bytes:
            data: bytes = self._run("get", key, lambda fs: self._range(fs, path, start, stop))
            return data

        yield _Reader(read, size_bytes)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        path = f"{self._root}/{check_prefix(prefix)}".rstrip("/")
        found = sorted(self._run("list", prefix, lambda fs: self._listed(fs, path)).items())
        start = len(self._root.strip("/"))
        for name, size_bytes in found:
            key = name.strip("/")[start:].strip("/")
            if not key.rpartition("/")[2].startswith(TEMPORARY):
                yield ObjectInfo(key, size_bytes)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(ObjectNotFound):
                self._run("delete", key, _removal(self._path(key)))

    def server_time(self, key: str) -> datetime | None:
        """When the store says it wrote an object; ``None`` if it does not say."""
        path = self._path(key)
        try:
            told = self._run("get", key, lambda fs: fs.modified(path))
        except StorageDenied:  # not implemented by this kind of store
            return None
        return told if isinstance(told, datetime) and told.tzinfo else None

    def _found(self, key: str) -> bytes:
        """What is under a name. *Raises:* ``ObjectExists`` if the store does not say."""
        try:
            return self.get(key)
        except StorageError as error:
            raise ObjectExists(
                f"the name is taken; by whom is not known: {error}", key=key
            ) from error

    def _write(self, fs: Any, path: str, data: bytes) -> None:
        """Replace a file, whole as far as the store can."""
        if self._is_object_store:
            fs.pipe_file(path, data)
            return
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if renames(fs):
            write_by_rename(fs, path, data)
        else:
            fs.pipe_file(path, data)

    def _write_at_once(self, key: str, size_bytes: int) -> Iterator[Parts]:
        """A small object is kept until it is complete: its creation can be repeated."""
        kept: list[bytes] = []
        parts = Parts(size_bytes, PART_BYTES, lambda _, data: kept.append(bytes(data)))
        yield parts
        parts.finish()
        self.create(key, kept[0])

    def _begin(self, fs: Any, path: str) -> tuple[Any, Any]:
        """The file system and a new file of it."""
        if self.capabilities.exclusive_create:
            return fs, open_stream(fs, path, "xb", PART_BYTES)
        if is_taken(fs, path):
            raise FileExistsError(path)
        if not self._is_object_store:
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        return fs, open_stream(fs, path, "wb", PART_BYTES)

    def _check_size(self, key: str, size_bytes: int) -> None:
        path = self._path(key)
        found = self._run("get", key, lambda fs: size_of(fs, path))
        if found != size_bytes:
            raise StorageUnavailable(f"{found} of {size_bytes} bytes are there", key=key)

    def _range(self, fs: Any, path: str, start: int, stop: int) -> bytes:
        data: bytes = fs.cat_file(path, start=start, end=stop)
        if len(data) != stop - start:
            raise StorageUnavailable(f"{len(data)} of {stop - start} bytes came")
        return data

    def _listed(self, fs: Any, path: str) -> dict[str, int]:
        """Sizes of files by path."""
        forget_listings(fs)
        if not self._is_object_store:
            return dict(walk(fs, path))
        try:
            found = fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return {name: int(info["size"]) for name, info in found.items() if info["type"] == "file"}

    def _run(self, operation: str, key: str, act: Callable[[Any], T]) -> T:
        """What ``act`` returns for this thread's file system, after retries if they could help."""
        return self._translated(
            operation, key, lambda: self._retrier.call(operation, lambda: self._once(act))
        )

    def _once(self, act: Callable[[Any], T]) -> T:
        try:
            return act(self._fs())
        except Exception as error:
            if is_passing(error):
                self._thread.fs = None  # its connection may be what is broken
            raise

    def _not_repeated(
        self, operation: str, key: str, act: Callable[..., None]
    ) -> Callable[..., None]:
        return lambda *args: self._translated(operation, key, lambda: act(*args))

    def _translated(self, operation: str, key: str, act: Callable[[], T]) -> T:
        try:
            return act()
        except Exception as error:  # each backend has errors of its own
            meant = translated(error, operation, key, where=self._uri, secrets=self._secrets)
            if meant is error:
                raise
            raise meant from (None if tells(error, self._secrets) else error)

    def _fs(self) -> Any:
        fs = getattr(self._thread, "fs", None)
        if fs is None:
            fs = self._thread.fs = self._connect()
        return fs

    def _creating(self) -> AbstractContextManager[object]:
        """Where the store does not keep creations apart, this process at least does."""
        keeps_apart = self.capabilities.exclusive_create and self.capabilities.is_remote
        return nullcontext() if keeps_apart else _CREATING

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"


def _removal(path: str) -> Callable[[Any], None]:
    return lambda fs: fs.rm_file(path)


class _Reader:
    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._read = read
        self.size_bytes = size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> int:
        wanted = min(len(buffer), self.size_bytes - offset)
        if wanted <= 0:
            return 0
        buffer.cast("B")[:wanted] = self._read(offset, offset + wanted)
        return wanted
