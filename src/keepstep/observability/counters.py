"""Counts of what happened in this process, for metrics and the ledger."""

import threading
from collections import Counter

Labels = tuple[tuple[str, str], ...]


class Counters:
    """Counts that only grow, by name and labels. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        """Count something that has happened ``amount`` times."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount

    def total(self, name: str) -> int:
        """The sum over all labels."""
        return sum(self.by_labels(name).values())

    def by_labels(self, name: str) -> dict[Labels, int]:
        """Every count of this name; labels are sorted pairs."""
        with self._lock:
            return {labels: n for (one, labels), n in self._counts.items() if one == name}


COUNTERS = Counters()
"""This process's own."""
