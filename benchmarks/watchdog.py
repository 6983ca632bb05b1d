"""What the watchdog costs a step: ``python -m benchmarks.watchdog``.

One figure each, the median of several rounds: a tick that only measures; one that also writes the
heartbeat; one that also sets the deadline, as in the workers of ``keepstep run``.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keepstep.elastic.watchdog import Watchdog

_TICKS = 20_000
_ROUNDS = 9
_SHARE = 0.001


def main() -> None:
    """Print microseconds a tick, and the shortest step of which that is a thousandth."""
    for name, watchdog in _watchdogs():
        watchdog.begin("first step")
        seconds = statistics.median(_seconds_per_tick(watchdog) for _ in range(_ROUNDS))
        watchdog.rest()
        print(
            f"{name:<32} {seconds * 1e6:7.2f} us a step: under {_SHARE:.1%} of steps "
            f"from {seconds / _SHARE * 1e3:.1f} ms"
        )
    with _directory() as directory:
        watchdog = Watchdog(heartbeat=directory / "0")
        watchdog.begin("first step")
        seconds = statistics.median(_seconds_per_section(watchdog) for _ in range(_ROUNDS))
        watchdog.rest()
        print(f"{'a section of its own (save, eval)':<32} {seconds * 1e6:6.2f} us each")


def _watchdogs() -> Iterator[tuple[str, Watchdog]]:
    yield "measures", Watchdog(is_armed=False)
    with _directory() as directory:
        yield "and writes the heartbeat", Watchdog(heartbeat=directory / "0", is_armed=False)
        yield "and sets the deadline", Watchdog(heartbeat=directory / "1")


def _seconds_per_tick(watchdog: Watchdog) -> float:
    began = time.perf_counter()
    for step in range(_TICKS):
        watchdog.tick(step)
    return (time.perf_counter() - began) / _TICKS


def _seconds_per_section(watchdog: Watchdog, repetitions: int = 500) -> float:
    watchdog.learn({"step": 1.0})  # so that its deadline is another one than the section's
    began = time.perf_counter()
    for _ in range(repetitions):
        with watchdog.section("save", at_least_seconds=900):
            pass
    return (time.perf_counter() - began) / repetitions


@contextmanager
def _directory() -> Iterator[Path]:
    memory = Path("/dev/shm")  # noqa: S108  # a directory of an own name is made in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


if __name__ == "__main__":
    main()
