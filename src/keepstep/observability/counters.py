"""Counts of what happened in this process, for metrics and the ledger."""

import threading
from bisect import bisect_left
from collections import Counter

Labels = tuple[tuple[str, str], ...]

BUCKETS_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Upper bounds, by which durations are told apart; what takes longer has the bound ``+Inf``."""

BOUND = "le"
"""The label that holds a duration's bound."""

_BOUNDS = (*(str(bound) for bound in BUCKETS_SECONDS), "+Inf")


class Counters:
    """Counts that only grow, by name and labels. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        """Count something that has happened ``amount`` times."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Count something that has taken so long, with those that have the same bound.

        Together they took ``NAME_ns``.
        """
        bound = _BOUNDS[bisect_left(BUCKETS_SECONDS, seconds)]
        self.add(name, 1, le=bound, **labels)
        self.add(f"{name}_ns", round(seconds * 1e9), **labels)

    def total(self, name: str) -> int:
        """The sum over all labels."""
        return sum(self.by_labels(name).values())

    def by_labels(self, name: str) -> dict[Labels, int]:
        """Every count of this name; labels are sorted pairs."""
        with self._lock:
            return {labels: n for (one, labels), n in self._counts.items() if one == name}

    def all(self) -> dict[tuple[str, Labels], int]:
        """Every count, by name and labels."""
        with self._lock:
            return dict(self._counts)


COUNTERS = Counters()
"""This process's own."""

STORAGE_ERRORS = "storage_errors"
"""Name of the counter of what the store has failed to do, retries and all; label: kind."""
