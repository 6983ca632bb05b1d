"""A store that lives in memory."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from keepstep.errors import ObjectExists, ObjectNotFound
from keepstep.storage.base import Buffer, Capabilities, ObjectInfo, check_key, check_prefix


class MemoryStorage:
    """Objects in a dictionary. Keeps the contract of :class:`~keepstep.storage.base.Storage`."""

    capabilities = Capabilities(exclusive_create=True, append=True)

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        return f"memory://{id(self):x}"

    def put(self, key: str, data: Buffer) -> None:
        with self._lock:
            self._objects[check_key(key)] = bytes(data)

    def create(self, key: str, data: Buffer) -> None:
        with self._lock:
            if check_key(key) in self._objects:
                raise ObjectExists("the name is taken", key=key)
            self._objects[key] = bytes(data)

    @contextmanager
    def open_writer(self, key: str, size_bytes: int) -> Iterator["_MemoryWriter"]:
        self.create(key, b"")
        writer = _MemoryWriter(size_bytes)
        try:
            yield writer
        except BaseException:
            self.delete([key])
            raise
        self.put(key, writer.data)

    @contextmanager
    def open_appender(self, key: str) -> Iterator["_MemoryAppender"]:
        yield _MemoryAppender(lambda data: self._append(check_key(key), data))

    def get(self, key: str) -> bytes:
        with self._lock:
            try:
                return self._objects[check_key(key)]
            except KeyError:
                raise ObjectNotFound("no such object", key=key) from None

    @contextmanager
    def open_reader(self, key: str) -> Iterator["_MemoryReader"]:
        yield _MemoryReader(self.get(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            found = sorted((k, len(v)) for k, v in self._objects.items() if k.startswith(prefix))
        for key, size_bytes in found:
            yield ObjectInfo(key, size_bytes)

    def delete(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._objects.pop(check_key(key), None)

    def _append(self, key: str, data: Buffer) -> None:
        with self._lock:
            self._objects[key] = self._objects.get(key, b"") + bytes(data)


class _MemoryWriter:
    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)

    def write(self, offset: int, data: Buffer) -> None:
        self.data[offset : offset + len(data)] = data

    def abandon(self) -> None:
        pass


class _MemoryAppender:
    def __init__(self, append: Callable[[Buffer], None]) -> None:
        self.append = append

    def flush(self) -> None:
        pass


class _MemoryReader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        found = self._data[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)
