"""What it costs to agree at each step: ``python -m benchmarks.agreement [--ranks 4]``.

All ranks call what ``tick`` calls, with the same number of values, on the control group over gloo:
once where nothing is new, once where a save is due at every other call. An ``all_reduce`` of one
number takes turns with that. Ranks come to each call together, as far as the call before has
brought them together.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.machine import facts
from keepstep.elastic.control_group import ControlGroup
from keepstep.elastic.preemption import NoticeSources, Preemption
from keepstep.session.stopping import Agreed, Stopping
from keepstep.world import World

_CALLS = 500
_ROUNDS = 9
_WARM_UP_CALLS = 200
_TIMEOUT_SECONDS = 120.0


def main() -> None:
    """Print a line for a person, and one of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    ranks: int = parser.parse_args().ranks
    with tempfile.TemporaryDirectory() as name:
        spawn(_measure, args=(ranks, name), nprocs=ranks)
        found = json.loads((Path(name) / "found").read_text())
        machine = facts(Path(name))
    agreement, news, reduction = (_words(figures) for figures in found.values())
    print(
        f"{ranks} ranks: a step's agreement takes {agreement}, one with news {news}, an all_reduce "
        f"of one number {reduction}"
    )
    print(json.dumps({"ranks": ranks, "calls": _CALLS * _ROUNDS, "machine": machine} | found))


def _measure(rank: int, ranks: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=ranks
    )
    control = ControlGroup(World(rank=rank, world_size=ranks), timeout_seconds=_TIMEOUT_SECONDS)
    plain = dist.new_group(backend="gloo")
    stopping = Stopping(Preemption(NoticeSources(signals=False)))
    number = torch.zeros(1, dtype=torch.int64)

    calls_made = itertools.count()

    def agree(*, save_is_due: bool = False) -> None:
        votes = stopping.votes(save_seconds=1.0)
        found = control.largest([save_is_due, False, False, *votes])
        Agreed.of(found[3:])

    def agree_on_news() -> None:
        agree(save_is_due=next(calls_made) % 2 == 0)

    def reduce() -> None:
        dist.all_reduce(number, group=plain)

    calls: dict[str, Callable[[], None]] = {
        "agreement": agree,
        "agreement_with_news": agree_on_news,
        "all_reduce": reduce,
    }
    for call in calls.values():
        _seconds_of_each(call, _WARM_UP_CALLS)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            seconds[name] += _seconds_of_each(call, _CALLS)
    if rank == 0:
        found = {name: _figures(each) for name, each in seconds.items()}
        (Path(directory) / "found").write_text(json.dumps(found))
    control.close()
    dist.destroy_process_group()


def _seconds_of_each(call: Callable[[], None], calls: int) -> list[float]:
    times = [time.perf_counter()]
    for _ in range(calls):
        call()
        times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


def _words(figures: dict[str, float]) -> str:
    return f"{figures['median_ms']:.3f} ms (p90 {figures['p90_ms']:.3f})"


def _figures(seconds: list[float]) -> dict[str, float]:
    p90 = statistics.quantiles(seconds, n=10)[-1]
    return {
        "median_ms": round(statistics.median(seconds) * 1e3, 4),
        "p90_ms": round(p90 * 1e3, 4),
    }


if __name__ == "__main__":
    main()
