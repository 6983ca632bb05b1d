"""``python -m benchmarks``: measure everything, write JSON, print tables and claims."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import machine
from benchmarks.claims import judge
from benchmarks.launching import launch
from benchmarks.peers import PEERS
from benchmarks.plan import QUICK, Plan
from benchmarks.results import Results
from benchmarks.scenario import Scenario, Section
from benchmarks.tables import render, render_claims

_HERE = Path(__file__).resolve().parent
_SCRATCH_PARENT = _HERE.parent / "runs"
_SPARE_BYTES = 1 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if everything ran, 1 if a launch or keepstep broke down, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    if options.compare:
        _show(Results.from_json(json.loads(options.compare.read_text())))
        return 0
    plan = _plan(options)
    scenarios = plan.scenarios(with_cuda=torch.cuda.is_available())
    if options.list:
        _list(scenarios)
        return 0
    output = options.output or _HERE / "results" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(options.directory) as directory:
        _check_space(directory, scenarios)
        results = Results(machine.facts(directory) | {"load_average_start": machine.load_average()})
        for number, scenario in enumerate(scenarios, start=1):
            print(f"[{number}/{len(scenarios)}] {scenario.title}", file=sys.stderr, flush=True)
            results.add(launch(scenario, directory, timeout_seconds=options.timeout_seconds))
            _write(results, output)  # at once: whoever interrupts an hour of it keeps the rest
    results.machine["load_average_end"] = machine.load_average()
    _write(results, output)
    if not torch.cuda.is_available():
        print("CUDA section skipped: torch finds no CUDA device\n")
    _show(results)
    print(f"\nwritten to {output.name}")
    return 1 if results.failures or any(not problem.peer for problem in results.problems) else 0


def _write(results: Results, output: Path) -> None:
    claims = [verdict.to_json() for verdict in judge(results)]
    output.write_text(_lines(results.to_json() | {"claims": claims}, depth=5) + "\n")


def _show(results: Results) -> None:
    print(render(results))
    print("\n" + render_claims(judge(results)))


def _lines(value: Any, depth: int) -> str:
    """JSON with a line for each member of the outer levels: readable, and small as a diff."""
    if depth and value and isinstance(value, dict):
        members = [f"{json.dumps(key)}: {_lines(item, depth - 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(members) + "\n}"
    if depth and value and isinstance(value, list):
        return "[\n" + ",\n".join(_lines(item, depth - 1) for item in value) + "\n]"
    return json.dumps(value)


def _list(scenarios: Sequence[Scenario]) -> None:
    for scenario in scenarios:
        print(f"{scenario.title}: {', '.join(scenario.peers)}")


def _plan(options: argparse.Namespace) -> Plan:
    """The full or the quick one, with what was asked for in its place."""
    asked = {
        field.name: getattr(options, field.name)
        for field in fields(Plan)
        if getattr(options, field.name, None) is not None
    }
    return replace(QUICK if options.quick else Plan(), **asked)


@contextmanager
def _scratch(parent: Path | None) -> Iterator[Path]:
    """A directory to work in, removed afterwards: on the repository's file system by default."""
    parent = parent or _SCRATCH_PARENT
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="bench-") as made:
        yield Path(made).resolve()


def _check_space(directory: Path, scenarios: Sequence[Scenario]) -> None:
    """Two checkpoints of all ranks, or with another job to load them one of every peer."""
    needed = _SPARE_BYTES
    for scenario in scenarios:
        copies = len(scenario.peers) if scenario.load_ranks else 2
        needed = max(needed, _SPARE_BYTES + (scenario.size_mib << 20) * (copies + scenario.ranks))
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise SystemExit(
            f"{needed >> 20} MiB of disk space are needed and {free >> 20} MiB are free: choose "
            "another --directory or smaller --sizes-mib"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two minutes instead of an hour")
    parser.add_argument("--list", action="store_true", help="print what would run, and stop")
    parser.add_argument("--compare", type=Path, metavar="JSON", help="show a stored run's claims")
    parser.add_argument("--directory", type=Path, help="where to save; default: the repository's")
    parser.add_argument("--output", type=Path, metavar="JSON", help="default: benchmarks/results")
    parser.add_argument("--timeout-seconds", type=float, default=1800, help="for one scenario")
    parser.add_argument(
        "--sections", type=_words(get_args(Section)), help=f"of {','.join(get_args(Section))}"
    )
    parser.add_argument("--peers", type=_words(tuple(PEERS)), help="only these; see --list")
    parser.add_argument("--sizes-mib", type=_numbers, help="the first is measured in every way")
    parser.add_argument("--ranks", type=_numbers, help="for example 1,2,4")
    parser.add_argument("--num-tensors", type=int, help="of the usual state")
    parser.add_argument(
        "--many-tensors", type=int, help="of the state that is hard to plan; 0: none"
    )
    parser.add_argument("--repetitions", type=int, help="counted ones; one more comes first")
    parser.add_argument("--soak-saves", type=int, help="saves in a row")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _words(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        if unknown := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return words

    return parse


if __name__ == "__main__":
    sys.exit(main())
