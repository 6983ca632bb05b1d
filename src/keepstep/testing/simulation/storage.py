"""A store whose every request can be crossed, fail, or lose its reply."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

from keepstep.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from keepstep.storage.base import Buffer, Capabilities, ObjectInfo, check_key
from keepstep.testing.simulation.media import Media

_legal = lru_cache(maxsize=4096)(check_key)


class Reply(StrEnum):
    """What comes of a request that does not go well."""

    FAILED = "failed"
    """Nothing has happened, and the caller is told."""
    FULL = "full"
    """There is no space left for it."""
    LOST = "lost reply"
    """It has happened; the caller is told that the store did not answer."""
    REPEATED = "lost reply, repeated"
    """It has happened, was repeated, and the second try found the first."""
    LATE = "late"
    """The caller is told that the store did not answer; it happens later, or never."""
    GARBLED = "garbled"
    """What was read arrived damaged."""


class Fate(Protocol):
    """What a store asks before it does anything."""

    def pass_by(self, operation: str, key: str, moment: str = "") -> Reply | None:
        """Let the world go on; whoever is killed here does not return."""
        ...

    def land_later(self, act: Callable[[], None]) -> None:
        """Have a request carried out after its caller has given up."""
        ...


class SimulatedStorage:
    """Keeps the contract of :class:`~keepstep.storage.base.Storage`, and no more than it.

    Args:
        is_disk: A directory: what was written is seen before it is durable. Otherwise an object
            store: objects appear whole and durable, and requests may be carried out late.
        order: Of a listing: any, to show that nothing rests on it; else that of the keys.
    """

    def __init__(
        self,
        media: Media,
        fate: Fate,
        *,
        is_disk: bool,
        order: Callable[[list[str]], list[str]] | None = None,
    ) -> None:
        self.media = media
        self.fate = fate
        self.is_disk = is_disk
        self._order = order
        self.capabilities = Capabilities(
            exclusive_create=True, append=is_disk, is_remote=not is_disk
        )

    @property
    def uri(self) -> str:
        return "simulated://run"

    def put(self, key: str, data: Buffer) -> None:
        self._write(
            "put", key, lambda: self.media.set(key, bytes(data), is_durable=self._is_at_once)
        )

    def create(self, key: str, data: Buffer) -> None:
        content = bytes(data)
        self._write(
            "create", key, lambda: self.media.create(key, content, is_durable=self._is_at_once)
        )

    @contextmanager
    def open_writer(self, key: str, size_bytes: int) -> Iterator["_Writer"]:
        self.refuse(self.fate.pass_by("open", _legal(key)), key)
        writer = _Writer(self, key, size_bytes)
        if self.is_disk:
            # The room is reserved: from now on the file has its size, and no content.
            self.media.create(key, bytes(size_bytes), is_durable=False, may_tear=True)
        elif key in self.media.seen:
            raise ObjectExists("the name is taken", key=key)
        try:
            yield writer
            self._complete(key, bytes(writer.data))
        except Exception:
            if self.is_disk:
                self.media.set(key, None, is_durable=False)
            raise

    @contextmanager
    def open_appender(self, key: str) -> Iterator["_Appender"]:
        yield _Appender(self, key)

    def get(self, key: str) -> bytes:
        self.refuse(self.fate.pass_by("get", key), key)
        return self._content(key)

    @contextmanager
    def open_reader(self, key: str) -> Iterator["_Reader"]:
        self.refuse(self.fate.pass_by("open to read", key), key)
        yield _Reader(self, key, self._content(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.refuse(self.fate.pass_by("list", prefix), prefix)
        if self._order is None:
            found = self.media.names(prefix)
        else:
            found = self._order([key for key in self.media.seen if key.startswith(prefix)])
        pages = [found[: len(found) // 2], found[len(found) // 2 :]] if len(found) > 3 else [found]
        return self._listed(pages)

    def delete(self, keys: Iterable[str]) -> None:
        removed = []
        for key in keys:
            reply = self.fate.pass_by("delete", key)
            if reply is Reply.LOST:
                self.media.set(key, None, is_durable=self._is_at_once)
            self.refuse(reply, key)
            self.media.set(key, None, is_durable=self._is_at_once)
            removed.append(key)
        if self.is_disk and removed:
            self.fate.pass_by("delete", removed[-1], "unsynced")
            for key in removed:
                self.media.sync(key)

    def make_durable(self, key: str) -> None:
        if self.is_disk:
            self.refuse(self.fate.pass_by("sync", key), key)
            self.media.sync(key)

    @property
    def _is_at_once(self) -> bool:
        return not self.is_disk

    def _listed(self, pages: Iterable[Iterable[str]]) -> Iterator[ObjectInfo]:
        """Page by page: a listing is not of one moment."""
        seen = self.media.seen
        for number, page in enumerate(pages):
            if number:
                key = next(iter(page))
                self.refuse(self.fate.pass_by("list", key, "next page"), key)
            for key in page:
                if (data := seen.get(key)) is not None:
                    yield ObjectInfo(key, len(data))

    def _write(self, operation: str, key: str, act: Callable[[], None]) -> None:
        reply = self.fate.pass_by(operation, _legal(key))
        if reply is Reply.LATE:
            self.fate.land_later(act)
            raise StorageUnavailable("no answer", key=key)
        if reply in (Reply.FAILED, Reply.FULL):
            self.refuse(reply, key)
        act()
        if self.is_disk:
            self.fate.pass_by(operation, key, "unsynced")
            self.media.sync(key)
        if reply is Reply.LOST:
            raise StorageUnavailable("no answer", key=key)
        if reply is Reply.REPEATED and operation == "create":
            raise ObjectExists("the name is taken", key=key)

    def _complete(self, key: str, data: bytes) -> None:
        """End the writing of a large object."""
        if self.is_disk:
            self.refuse(self.fate.pass_by("sync", key), key)
            self.media.sync(key)
        else:
            self._write("complete", key, lambda: self.media.create(key, data, is_durable=True))

    def _content(self, key: str) -> bytes:
        try:
            return self.media.seen[key]
        except KeyError:
            raise ObjectNotFound("no such object", key=key) from None

    def refuse(self, reply: Reply | None, key: str) -> None:
        """*Raises:* what a request is answered with, unless it goes well."""
        if reply is None or reply is Reply.GARBLED:
            return
        error: type[StorageError] = StorageFull if reply is Reply.FULL else StorageUnavailable
        raise error(str(reply), key=key)


class _Writer:
    def __init__(self, storage: SimulatedStorage, key: str, size_bytes: int) -> None:
        self._storage = storage
        self._key = key
        self.data = bytearray(size_bytes)

    def write(self, offset: int, data: Buffer) -> None:
        storage = self._storage
        storage.refuse(storage.fate.pass_by("write", self._key), self._key)
        self.data[offset : offset + len(data)] = data
        if storage.is_disk and self._key in storage.media.seen:
            storage.media.set(self._key, bytes(self.data), is_durable=False, may_tear=True)

    def abandon(self) -> None:
        pass


class _Appender:
    def __init__(self, storage: SimulatedStorage, key: str) -> None:
        self._storage = storage
        self._key = key

    def append(self, data: Buffer) -> None:
        storage, key = self._storage, self._key
        storage.refuse(storage.fate.pass_by("append", key), key)
        grown = storage.media.seen.get(key, b"") + bytes(data)
        storage.media.set(key, grown, is_durable=False, may_tear=True)

    def flush(self) -> None:
        self._storage.make_durable(self._key)


class _Reader:
    def __init__(self, storage: SimulatedStorage, key: str, data: bytes) -> None:
        self._storage = storage
        self._key = key
        self._data = data

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        storage = self._storage
        reply = storage.fate.pass_by("read", self._key)
        storage.refuse(reply, self._key)
        found = self._data[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        if reply is Reply.GARBLED and found:
            buffer[0] ^= 1
        return len(found)
