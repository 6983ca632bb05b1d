"""The ledger: one append-only log per rank and generation, one JSON object a line.

Its lines survive the death of the process that wrote them, so that the next start can say what was
lost. Nothing but reports rests on it: which checkpoints exist is decided by the manifests alone.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from keepstep.errors import StorageError

logger = logging.getLogger("keepstep.ledger")


class Ledger:
    """Writes events. ``append`` adds bytes to the log; where it fails, training goes on without."""

    def __init__(self, append: Callable[[bytes], None], *, generation: int, rank: int) -> None:
        self._append = append
        self._is_failing = False
        self._common = {"generation": generation, "rank": rank}

    def record(self, event: str, **fields: Any) -> None:
        """Write one line: the event, the time (Unix seconds), and the fields (JSON values)."""
        line = {"event": event, **fields, "time": round(time.time(), 3), **self._common}
        try:
            self._append((json.dumps(line, separators=(",", ":")) + "\n").encode())
            self._is_failing = False
        except StorageError as error:
            if not self._is_failing:
                logger.warning("the ledger cannot be written, events are lost: %s", error)
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
