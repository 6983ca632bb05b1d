"""What the workers of one node have counted, over all incarnations that its agent has started."""

import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from keepstep.observability.counters import Labels
from keepstep.observability.numbers import NUMBERS_SUFFIX, SECTION_NS, Numbers, read_numbers

_DOWN = (SECTION_NS, (("section", "down"),))
"""Between two incarnations: the rendezvous, pauses, the start of processes."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The numbers of a node, at one moment."""

    ranks: dict[int, Numbers] = field(default_factory=dict)
    """Of the workers that run."""
    counts: Counter[tuple[str, Labels]] = field(default_factory=Counter)
    """Of all workers there ever were on this node: they never go back."""


class Tally:
    """Adds up incarnations. Thread-safe.

    A worker that was killed has counted for nobody what it did in its last second.
    """

    def __init__(self) -> None:
        self._past: Counter[tuple[str, Labels]] = Counter()
        self._directory = Path()
        self._ranks: tuple[int, ...] = ()
        self._num_ranks = 0
        self._ended_ns: int | None = None
        self._lock = threading.Lock()

    def begin(self, directory: Path, ranks: Collection[int]) -> None:
        """Workers were started; their numbers are in ``directory``."""
        with self._lock:
            self._num_ranks = len(ranks)
            self._past[_DOWN] += self._down_ns()
            self._ended_ns = None
            self._directory, self._ranks = directory, tuple(ranks)

    def end(self) -> None:
        """They have ended. Said twice, it counts once."""
        with self._lock:
            if not self._ranks:
                return
            for numbers in self._read().values():
                self._past.update(numbers.counts)
            self._ranks = ()
            self._ended_ns = time.monotonic_ns()

    def read(self) -> Reading:
        """What all of them have counted, up to now."""
        with self._lock:
            ranks = self._read()
            counts = self._past.copy()
            for numbers in ranks.values():
                counts.update(numbers.counts)
            counts[_DOWN] += self._down_ns()
            return Reading(ranks, counts)

    def _read(self) -> dict[int, Numbers]:
        paths = {rank: self._directory / f"{rank}{NUMBERS_SUFFIX}" for rank in self._ranks}
        return {rank: found for rank, path in paths.items() if (found := read_numbers(path))}

    def _down_ns(self) -> int:
        """Since the last incarnation ended, for all ranks together."""
        if self._ended_ns is None:
            return 0
        return (time.monotonic_ns() - self._ended_ns) * self._num_ranks
