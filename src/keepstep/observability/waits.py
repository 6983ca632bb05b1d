"""Seconds that this process spends waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waits:
    """Seconds that add up until they are taken. One thread: that of the training loop."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - began

    def take(self) -> float:
        """What has added up since this was asked last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


DATA_WAITS = Waits()
"""This process's own."""
