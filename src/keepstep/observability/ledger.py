"""The ledger: one append-only log per rank and generation, one JSON object a line.

Its lines outlive the process that wrote them (on object stores: those of its last seconds may not),
so that the next start can say what was lost. Nothing but reports rests on it: which checkpoints
exist is decided by the manifests alone.
"""

import json
import logging
import time
from typing import Any, Protocol

from keepstep.errors import StorageError
from keepstep.observability.counters import COUNTERS, STORAGE_ERRORS

logger = logging.getLogger("keepstep.ledger")

END = "end"
"""The event of a session that was left without an error."""


class Log(Protocol):
    """Bytes to which one writer adds at the end. Thread-safe."""

    def append(self, data: bytes, /) -> None:
        """Add to the end. *Raises:* ``StorageError`` if the log cannot be written now: what was
        added waits for better times; ``StorageFull`` also if so much waits that it is lost."""
        ...

    def flush(self) -> None:
        """*Durability:* everything added survives this process. *Raises:* ``StorageError``."""
        ...

    def close(self) -> None:
        """Flush, and free what the log needed. *Raises:* ``StorageError`` if something is lost."""
        ...


class Ledger:
    """Writes events into a log. Where that fails, training goes on without."""

    def __init__(self, log: Log, *, generation: int, rank: int) -> None:
        self._log = log
        self._is_failing = False
        self._common = {"generation": generation, "rank": rank}

    def record(self, event: str, **fields: Any) -> None:
        """Write one line: the event, the time (Unix seconds), and the fields (JSON values)."""
        line = {"event": event, **fields, "time": round(time.time(), 3), **self._common}
        try:
            self._log.append((json.dumps(line, separators=(",", ":")) + "\n").encode())
            self._is_failing = False
        except StorageError as error:
            self._report(error)

    def flush(self) -> None:
        """See to it that what was recorded outlives this process, if the store answers."""
        try:
            self._log.flush()
        except StorageError as error:
            self._report(error)

    def close(self) -> None:
        """Flush, and free what the log needed."""
        try:
            self._log.close()
        except StorageError as error:
            logger.warning("the last events did not reach the ledger: %s", error)

    def _report(self, error: StorageError) -> None:
        COUNTERS.add(STORAGE_ERRORS, kind=type(error).__name__)
        if not self._is_failing:
            logger.warning("the ledger cannot be written now: %s", error)
        self._is_failing = True


def read_ledger(data: bytes) -> list[dict[str, Any]]:
    """The events of one log, in order. A line torn by the writer's death is left out."""
    events = []
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events
