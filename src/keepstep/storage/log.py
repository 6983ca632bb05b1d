"""Logs: bytes added to the end of an object, also on stores whose objects never grow.

There a log is a row of numbered segments. What was added waits in memory; every few seconds, and
whenever :meth:`Log.flush` is called, the last segment is written anew with it.
"""

import threading
from contextlib import suppress
from typing import Protocol

from keepstep.errors import ObjectNotFound, StorageError, StorageUnavailable
from keepstep.storage.base import Buffer, Storage

FLUSH_SECONDS = 5.0
"""What the death of a process takes with it, at most, where objects never grow."""

_SEGMENT_BYTES = 256 << 10
_MOST_WAITING_BYTES = 8 << 20


class Log(Protocol):
    """A log of one writer. Thread-safe."""

    def append(self, data: Buffer) -> None:
        """Add to the end. *Raises:* ``StorageError`` if this, or what waited before, was lost."""
        ...

    def flush(self) -> None:
        """*Durability:* everything added survives this process. *Raises:* ``StorageError``."""
        ...

    def close(self) -> None:
        """Flush, as far as possible, and free what the log needed."""
        ...


def open_log(storage: Storage, key: str) -> Log:
    """The log of that key, which nobody else may be writing. Nothing is written yet."""
    return AppendedLog(storage, key) if storage.capabilities.append else SegmentedLog(storage, key)


def read_log(storage: Storage, key: str, *, last_bytes: int | None = None) -> bytes:
    """A log, or about ``last_bytes`` of its end; empty if there is none."""
    with suppress(ObjectNotFound), storage.open_reader(key) as reader:
        wanted = reader.size_bytes if last_bytes is None else min(reader.size_bytes, last_bytes)
        data = bytearray(wanted)
        count = reader.read_into(reader.size_bytes - wanted, memoryview(data))
        return bytes(data[:count])
    found: list[bytes] = []
    for info in reversed(list(storage.list(f"{_segments(key)}/"))):
        if last_bytes is not None and sum(map(len, found)) >= last_bytes:
            break
        found.append(storage.get(info.key))
    return b"".join(reversed(found))


class AppendedLog:
    """A log on a store that can append."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._key = key

    def append(self, data: Buffer) -> None:
        self._storage.append(self._key, data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class SegmentedLog:
    """A log on a store that cannot. Segments start anew: the key must be this writer's alone."""

    def __init__(self, storage: Storage, key: str, *, flush_seconds: float = FLUSH_SECONDS) -> None:
        self._storage = storage
        self._prefix = _segments(key)
        self._flush_seconds = flush_seconds
        self._number = 1
        self._segment = b""
        self._waiting = bytearray()
        self._error: StorageError | None = None
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def append(self, data: Buffer) -> None:
        with self._lock:
            error, self._error = self._error, None
            if len(self._waiting) < _MOST_WAITING_BYTES:
                self._waiting += data
            elif error is None:
                error = StorageUnavailable("too much of a log waits for the store; this is lost")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._flush_now_and_then, name="keepstep-log", daemon=True
                )
                self._thread.start()
        if error is not None:
            raise error

    def flush(self) -> None:
        with self._flushing:
            with self._lock:
                data = bytes(self._waiting)
            if not data:
                return
            self._storage.put(f"{self._prefix}/{self._number:06}.jsonl", self._segment + data)
            with self._lock:
                del self._waiting[: len(data)]
            self._segment += data
            if len(self._segment) >= _SEGMENT_BYTES:
                self._number += 1
                self._segment = b""

    def close(self) -> None:
        self._is_closed.set()
        with suppress(StorageError):
            self.flush()
        if self._thread is not None:
            self._thread.join()

    def _flush_now_and_then(self) -> None:
        while not self._is_closed.wait(self._flush_seconds):
            try:
                self.flush()
            except StorageError as error:
                with self._lock:
                    self._error = error


def _segments(key: str) -> str:
    return key.removesuffix(".jsonl")
