"""What metrics cost a step: ``python -m benchmarks.metrics``.

A session's step with its numbers set and counted; the same while a thread writes them all to a file
once a second, as in the workers of ``keepstep run --metrics-port``; and one such write.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from keepstep.observability.counters import COUNTERS
from keepstep.observability.numbers import METER
from keepstep.observability.section_clock import SectionClock
from keepstep.phases import Phase
from keepstep.session.metering import SAVE_PHASE, meter_metrics, meter_step
from keepstep.world import World

_STEPS = 200_000
_ROUNDS = 9


def main() -> None:
    """Print microseconds."""
    _show("a step that sets its numbers", _seconds_each(_step, _STEPS))
    for phase in Phase:
        for seconds in (0.001, 0.02, 0.2, 2.0, 20.0):
            COUNTERS.observe(SAVE_PHASE, seconds, phase=phase)
    with tempfile.TemporaryDirectory() as directory:
        METER.publish(Path(directory) / "0", SectionClock())
        _show("while they are written once a second", _seconds_each(_step, _STEPS))
        _show("one write", _seconds_each(lambda _: METER.write(), 500))


def _step(step: int) -> None:
    meter_step(step, samples=128, tokens=4096, world=World())
    meter_metrics({"loss": 2.5})


def _seconds_each(act: Callable[[int], None], repetitions: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        for number in range(repetitions):
            act(number)
        return (time.perf_counter() - began) / repetitions

    return statistics.median(once() for _ in range(_ROUNDS))


def _show(name: str, seconds: float) -> None:
    print(f"{name:<40} {seconds * 1e6:8.2f} us")


if __name__ == "__main__":
    main()
