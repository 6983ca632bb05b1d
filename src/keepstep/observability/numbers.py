"""A worker's numbers: what it hands to the agent of its node, for metrics.

A worker sets numbers whenever it likes, at no cost worth counting. Once a second a thread of its
own puts them all into a small file beside its heartbeat, whole or not at all.
"""

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keepstep.observability.counters import COUNTERS, Counters, Labels
from keepstep.observability.section_clock import SectionClock

logger = logging.getLogger("keepstep.metrics")

NUMBERS_SUFFIX = ".numbers"
"""After the rank, in the directory of heartbeats."""

SECTION_NS = "section_ns"
"""Name of the count of time; label: section."""

_PERIOD_SECONDS = 1.0

Counts = dict[tuple[str, Labels], int]


@dataclass(frozen=True, slots=True)
class Numbers:
    """What one worker has said last."""

    gauges: Mapping[str, float] = field(default_factory=dict)
    """What may go up and down, by name."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the loop has measured, such as its loss; on the coordinator."""
    counts: Mapping[tuple[str, Labels], int] = field(default_factory=dict)
    """What only grows while the process lives, by name and labels."""


class Meter:
    """This process's numbers.

    *Ranks:* local; one thread sets. Writing is thread-safe.

    Args:
        counters: Are handed over as well.
    """

    def __init__(self, counters: Counters = COUNTERS) -> None:
        self._gauges: dict[str, float] = {}
        self._metrics: dict[str, float] = {}
        self._counters = counters
        self._clock: SectionClock | None = None
        self._path: Path | None = None
        self._lock = threading.Lock()
        self._is_failing = False

    def set(self, **gauges: float) -> None:
        """Numbers as they are now; others stay as they were."""
        self._gauges.update(gauges)

    def set_metrics(self, metrics: Mapping[str, float]) -> None:
        """The same for what the loop has measured."""
        self._metrics.update(metrics)

    def publish(self, path: Path, clock: SectionClock) -> None:
        """Write it all to that file, once a second from now on. Once in a process."""
        self._path, self._clock = path, clock
        threading.Thread(target=self._keep_writing, name="keepstep-numbers", daemon=True).start()

    def write(self) -> None:
        """Write it now, if anybody is to read it."""
        if self._path is None:
            return
        with self._lock:
            try:
                _write(self._path, self._numbers())
                self._is_failing = False
            except OSError as error:
                if not self._is_failing:
                    logger.warning("numbers for metrics cannot be written: %s", error)
                self._is_failing = True

    def _keep_writing(self) -> None:
        pause = threading.Event()
        while not pause.wait(_PERIOD_SECONDS):
            self.write()

    def _numbers(self) -> Numbers:
        counts = self._counters.all()
        spent = self._clock.spent_ns() if self._clock else {}
        counts |= {(SECTION_NS, (("section", name),)): ns for name, ns in spent.items()}
        return Numbers(self._gauges.copy(), self._metrics.copy(), counts)


METER = Meter()
"""This process's own."""


def read_numbers(path: Path) -> Numbers | None:
    """What the worker has said last; ``None`` if it has said nothing that can be read."""
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        counts = {(name, tuple(map(tuple, labels))): n for name, labels, n in document["counts"]}
        return Numbers(document["gauges"], document["metrics"], counts)
    except (OSError, ValueError, KeyError, TypeError):  # whatever it is: others have numbers too
        return None


def _write(path: Path, numbers: Numbers) -> None:
    document = {
        "gauges": numbers.gauges,
        "metrics": numbers.metrics,
        "counts": [(name, labels, n) for (name, labels), n in numbers.counts.items()],
    }
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(document))
    draft.replace(path)
