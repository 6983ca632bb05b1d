"""What happened to this process before there was a ledger to write it into."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LAUNCHER = "launcher"
"""Whoever starts the workers of this node is started itself."""
RENDEZVOUS = "rendezvous"
"""Nodes find each other."""
WAITING = "waiting"
"""There are too few of them."""
PROCESS = "process"
"""The process itself, up to its first session."""
PROCESS_GROUP = "process_group"
"""Ranks find each other."""

Moments = tuple[float, float]
"""Beginning and end, in Unix seconds."""


class StartUp:
    """Spans by name, until somebody has a ledger for them. Thread-safe."""

    def __init__(self) -> None:
        self._spans: dict[str, Moments] = {}
        self._lock = threading.Lock()
        self._is_first = True

    def note(self, name: str, began: float, ended: float) -> None:
        """Something that took from ``began`` to ``ended``; the last word counts."""
        with self._lock:
            self._spans[name] = (began, ended)

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Note how long the block takes, if it ends well."""
        began = time.time()
        yield
        self.note(name, began, time.time())

    def take(self) -> dict[str, Moments]:
        """Everything noted, and forget it: what follows belongs to another session."""
        with self._lock:
            spans, self._spans = self._spans, {}
            if self._is_first and (began := process_started()) is not None:
                spans[PROCESS] = (began, time.time())
            self._is_first = False
            return spans


STARTUP = StartUp()
"""This process's own."""


def process_started(pid: int | None = None) -> float | None:
    """When a process was started, by default this one, in Unix seconds to 10 ms; ``None`` where
    that is not told."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        # Fields after the name, which may hold anything; the 22nd of all is the start.
        fields = Path(f"/proc/{pid or 'self'}/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    return None
