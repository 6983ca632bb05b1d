"""The contract of a store, and the rules for keys."""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

from keepstep.errors import InternalError

Buffer = bytes | bytearray | memoryview

_SEGMENT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.\-]*\Z")


class ObjectInfo(NamedTuple):
    """What a listing says about one object."""

    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can promise beyond put, get, list and delete."""

    exclusive_create: bool
    """``create`` has exactly one winner among racing writers."""
    append: bool
    """``open_appender`` works, so that a log survives the death of its writer line by line."""
    is_remote: bool = False
    """Reading costs more than sending what was read to another rank."""
    concurrency: int = 4
    """So many reads or writes at a time are fastest."""
    request_bytes: int = 256 << 10
    """Reading fewer bytes than this by themselves costs more than copying them out of a larger
    read."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was begun and not ended: no object, but stored and paid for."""

    key: str
    id: str
    began: datetime


class ObjectWriter(Protocol):
    """A new object that is being written in pieces, in any order. Thread-safe."""

    def write(self, offset: int, data: Buffer) -> None:
        """Put ``data`` at ``offset`` bytes. It may be reused once this returns."""
        ...

    def abandon(self) -> None:
        """Let writes that are under way fail soon, if they could take long: the object is given
        up.
        """
        ...


class Appender(Protocol):
    """The end of a log that is being written."""

    def append(self, data: Buffer) -> None:
        """Add to the end. Whoever gets an error has added nothing, and may try again.

        *Durability:* survives the death of this process, not a power loss.
        """
        ...

    def flush(self) -> None:
        """*Durability:* everything added survives power loss, and the loss of this node."""
        ...


class ObjectReader(Protocol):
    """An object that is being read in pieces, in any order. Thread-safe."""

    @property
    def size_bytes(self) -> int: ...

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; returns bytes read, fewer only at the object's end."""
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
        ourselves, so callers read back and compare. ``StorageUnavailable`` as long as the object
        may still appear, whatever else went wrong.
        """
        ...

    def open_writer(self, key: str, size_bytes: int) -> AbstractContextManager[ObjectWriter]:
        """Write a new object of ``size_bytes`` in pieces; the name must be free.

        Leaving the block normally makes the object durable; leaving it by an exception removes it
        as far as possible. A reader may see an incomplete object meanwhile: nothing may refer to
        it before the block has ended. Every byte must be written, in pieces that do not overlap;
        pieces of several MiB whose addresses, offsets and sizes are multiples of 4096 bytes are
        fastest.

        *Raises:* ``ObjectExists`` if the name is taken.
        """
        ...

    def open_appender(self, key: str) -> AbstractContextManager[Appender]:
        """Write at the end of a log, which is created if need be. One writer per key."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object. *Raises:* ``ObjectNotFound``."""
        ...

    def open_reader(self, key: str) -> AbstractContextManager[ObjectReader]:
        """Read an object in pieces; pieces of several MiB, read by a few threads, are fastest.

        *Raises:* ``ObjectNotFound``.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below ``prefix`` (empty, or ending in ``/``), in key order."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are no error. *Durability:* as for ``put``."""
        ...


@runtime_checkable
class KeepsUploads(Protocol):
    """A store in which uploads outlive whoever began them."""

    def uploads(self, prefix: str) -> tuple[Upload, ...]:
        """Those below ``prefix`` that were begun and not ended."""
        ...

    def abort_upload(self, upload: Upload) -> None:
        """Let go of what was uploaded. One that has ended is no error."""
        ...


@runtime_checkable
class ShowsBeforeDurable(Protocol):
    """A store in which an object can be read before it would survive power loss."""

    def make_durable(self, key: str) -> None:
        """See to it that what is read under a key survives power loss, whoever has written it.

        *Raises:* ``StorageError`` if it may not.
        """
        ...


def is_key(text: str) -> bool:
    """Whether a text is a legal key: segments of ``[A-Za-z0-9_.-]`` between single slashes."""
    segments = text.split("/")
    return all(map(_SEGMENT.match, segments)) and not {".", ".."} & set(segments)


def check_key(key: str) -> str:
    """The key itself, if it is legal."""
    if not is_key(key):
        raise InternalError("not a legal object key", key=key)
    return key


def check_prefix(prefix: str) -> str:
    """The prefix itself, if it is empty or a legal key followed by a slash."""
    if prefix:
        if not prefix.endswith("/"):
            raise InternalError("a listing prefix ends with a slash", key=prefix)
        check_key(prefix[:-1])
    return prefix
