"""A line that says how far a long command has come."""

import sys
import threading
import time
from types import TracebackType
from typing import Self

from keepstep.cli.output import bytes_in_words

_INTERVAL_SECONDS = 0.2


class ProgressLine:
    """``title: 1.20 GB of 3.40 GB`` on stderr, in place, if a person watches. Thread-safe."""

    def __init__(self, title: str, total_bytes: int) -> None:
        self._title = title
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._shown_at = 0.0
        self._lock = threading.Lock()
        self._is_watched = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown_at:
            self._write("")

    def add(self, size_bytes: int) -> None:
        """So many bytes more are done."""
        with self._lock:
            self._done_bytes += size_bytes
            now = time.monotonic()
            if self._is_watched and now - self._shown_at >= _INTERVAL_SECONDS:
                self._shown_at = now
                done, total = bytes_in_words(self._done_bytes), bytes_in_words(self._total_bytes)
                self._write(f"{self._title}: {done} of {total}")

    def _write(self, line: str) -> None:
        print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
