"""Logs: bytes added to the end of an object, also on stores whose objects never grow.

There a log is a row of numbered segments. What was added waits in memory; every few seconds, and
whenever somebody asks for a flush, the last segment is written anew with it.
"""

import threading
from contextlib import ExitStack, suppress

from keepstep.errors import ObjectNotFound, StorageError, StorageFull, StorageUnavailable
from keepstep.observability.ledger import Log
from keepstep.storage.base import Appender, Buffer, Storage

FLUSH_SECONDS = 5.0
"""What the death of a process takes with it, at most, where objects never grow."""

PATIENCE_SECONDS = 10.0
"""The longest that whoever flushes is kept waiting."""

_SEGMENT_BYTES = 256 << 10
_MOST_WAITING_BYTES = 8 << 20


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
    """A log on a store that can append. What cannot be written now is, with what comes later."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._key = key
        self._waiting = bytearray()
        self._lock = threading.Lock()
        self._opened = ExitStack()
        self._appender: Appender | None = None

    def append(self, data: Buffer) -> None:
        with self._lock:
            _require_room(self._waiting, data, self._key)
            self._waiting += data
            self._write()

    def flush(self) -> None:
        with self._lock:
            self._write()
            if self._appender is not None:
                self._appender.flush()

    def close(self) -> None:
        with self._lock:
            try:
                self._write()
            finally:
                self._let_go()  # a line that comes late opens the file anew

    def _write(self) -> None:
        if not self._waiting:
            return
        try:
            if self._appender is None:
                opened = self._storage.open_appender(self._key)
                self._appender = self._opened.enter_context(opened)
            self._appender.append(bytes(self._waiting))
        except StorageError:
            with suppress(StorageError):  # what was opened may be of no use any more
                self._let_go()
            raise
        self._waiting.clear()

    def _let_go(self) -> None:
        self._appender = None
        self._opened.close()


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
        self._changed = threading.Condition()
        self._written = 0
        self._wanted = 0
        self._failures = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def append(self, data: Buffer) -> None:
        with self._changed:
            _require_room(self._waiting, data, self._prefix)
            self._waiting += data
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="keepstep-log", daemon=True)
                self._thread.start()
            if self._error is not None:
                raise self._error

    def flush(self) -> None:
        """As the contract says. *Blocks:* at most :data:`PATIENCE_SECONDS`."""
        with self._changed:
            failures = self._failures
            self._wanted = wanted = self._written + len(self._waiting)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._written >= wanted or self._failures > failures, PATIENCE_SECONDS
            )
            if self._written < wanted:
                raise self._error or StorageUnavailable(
                    f"{self._prefix} is not written after {PATIENCE_SECONDS:.0f} s",
                    key=self._prefix,
                )

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._waiting:
            raise self._error or StorageUnavailable("the log was not written", key=self._prefix)

    def _work(self) -> None:
        """Write what waits: every few seconds, and when it is wanted."""
        is_last = False
        while not is_last:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._wanted > self._written or self._is_closed, self._flush_seconds
                )
                is_last, data = self._is_closed, bytes(self._waiting)
            if data:
                self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            self._storage.put(f"{self._prefix}/{self._number:06}.jsonl", self._segment + data)
        except StorageError as error:
            with self._changed:
                self._error = error
                self._failures += 1
                self._wanted = 0  # until somebody asks again, or the next turn
                self._changed.notify_all()
            return
        with self._changed:
            self._error = None
            self._written += len(data)
            del self._waiting[: len(data)]
            self._changed.notify_all()
        self._segment += data
        if len(self._segment) >= _SEGMENT_BYTES:
            self._number += 1
            self._segment = b""


def _require_room(waiting: bytearray, data: Buffer, key: str) -> None:
    """*Raises:* ``StorageFull`` if so much waits already that this cannot."""
    if len(waiting) + len(data) > _MOST_WAITING_BYTES:
        raise StorageFull(
            f"{len(waiting)} bytes wait to be written to {key}: what is recorded now is lost",
            key=key,
        )


def _segments(key: str) -> str:
    return key.removesuffix(".jsonl")
