"""The contract of a store, and the rules for keys."""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from keepstep.errors import InternalError

Buffer = bytes | bytearray | memoryview

_SEGMENT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.\-]*\Z")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says about one object."""

    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can promise beyond put, get, list and delete."""

    exclusive_create: bool
    """``create`` has exactly one winner among racing writers."""
    append: bool
    """``append`` works, so that a log survives the death of its writer line by line."""


class ObjectWriter(Protocol):
    """A new object that is being streamed. Not thread-safe."""

    def write(self, data: Buffer) -> None:
        """Append ``data``. It may be reused once this returns."""
        ...

    def flush(self) -> None:
        """Hand everything written so far to the store, without waiting for it to be durable."""
        ...


class Storage(Protocol):
    """Bytes under keys. Methods are thread-safe.

    *Raises:* only :class:`~keepstep.errors.StorageError` and its children, with ``key`` set.
    """

    @property
    def uri(self) -> str:
        """Where this store is, as a person would write it; holds no credentials."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def put(self, key: str, data: Buffer) -> None:
        """Create or replace an object; readers see the old bytes or the new, never a mixture.

        *Durability:* survives power loss once this returns.
        """
        ...

    def create(self, key: str, data: Buffer) -> None:
        """Create an object under a name that must be free, whole or not at all.

        *Durability:* survives power loss once this returns.
        *Raises:* ``ObjectExists`` if the name is taken, by whomever: after a retry that may be
        ourselves, so callers read back and compare.
        """
        ...

    def open_writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Stream a new object; the name must be free.

        Leaving the block normally makes the object durable; leaving it by an exception removes it
        as far as possible. A reader may see an incomplete object meanwhile: nothing may refer to
        it before the block has ended.

        *Raises:* ``ObjectExists`` if the name is taken.
        """
        ...

    def append(self, key: str, data: Buffer) -> None:
        """Add to the end of a log, creating it if need be. One writer per key.

        *Durability:* survives the death of this process, not a power loss.
        """
        ...

    def get(self, key: str) -> bytes:
        """The whole object. *Raises:* ``ObjectNotFound``."""
        ...

    def read_into(self, key: str, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; returns bytes read, fewer only at the object's end.

        *Raises:* ``ObjectNotFound``.
        """
        ...

    def size(self, key: str) -> int:
        """Size in bytes. *Raises:* ``ObjectNotFound``."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below ``prefix`` (empty, or ending in ``/``), in key order."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are no error. *Durability:* as for ``put``."""
        ...


def check_key(key: str) -> str:
    """The key itself, if it is legal: segments of ``[A-Za-z0-9_.-]`` between single slashes."""
    segments = key.split("/")
    if not all(_SEGMENT.match(segment) for segment in segments) or {".", ".."} & set(segments):
        raise InternalError("not a legal object key", key=key)
    return key


def check_prefix(prefix: str) -> str:
    """The prefix itself, if it is empty or a legal key followed by a slash."""
    if prefix:
        if not prefix.endswith("/"):
            raise InternalError("a listing prefix ends with a slash", key=prefix)
        check_key(prefix[:-1])
    return prefix
