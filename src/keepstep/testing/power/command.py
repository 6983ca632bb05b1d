"""The command line of the power cuts: every point, or some, and a table."""

# ruff: noqa: T201  # a command line prints

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

from keepstep.errors import ExitCode
from keepstep.testing.block_device import FILE_SYSTEMS, CuttableDisk, FileSystem, cannot_cut
from keepstep.testing.power.cut import Weather
from keepstep.testing.power.habits import BROKEN
from keepstep.testing.power.sweep import Outcome, find_out, points, sweep

DISK_BYTES = 64 << 20
_SHOWN = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0 if every cut was recovered from, and every broken habit was found out."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    systems = [FILE_SYSTEMS[name] for name in options.file_systems]
    if (reason := cannot_cut(*systems)) is not None:
        print(f"skipped: {reason}")
        sys.exit(ExitCode.OK)
    if options.mutants:
        found = [_find_out(system, name) for system in systems for name in BROKEN]
        is_good = all(found)
    else:
        is_good = _cut_everywhere(systems, options.every, options.seed)
    sys.exit(ExitCode.OK if is_good else ExitCode.ERROR)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m keepstep.testing.power",
        description="Cut the power of a real file system before every system call of a run that "
        "starts, saves, prunes, pins, rolls back and is restarted; mount it again, and check that "
        "every promise was kept and that the run goes on. Needs Linux and root.",
    )
    parser.add_argument(
        "--file-systems",
        type=_systems,
        default=list(FILE_SYSTEMS),
        metavar="NAME,...",
        help=f"default: {','.join(FILE_SYSTEMS)}",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each Nth point")
    parser.add_argument("--seed", type=int, default=0, help="of what is random in a cut")
    parser.add_argument(
        "--mutants",
        action="store_true",
        help="instead, leave syncs out that the store makes: each has to be found out",
    )
    return parser.parse_args(arguments)


def _systems(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in FILE_SYSTEMS]:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)}: choose from {', '.join(FILE_SYSTEMS)}"
        )
    return names


def _cut_everywhere(systems: Sequence[FileSystem], every: int, seed: int) -> bool:
    failed: list[Outcome] = []
    chapters: Counter[str] = Counter()
    print(f"{'file system':<16}{'besides':<10}{'points':>7}{'cuts':>7}{'recovered':>11}{'s':>7}")
    for system in systems:
        with CuttableDisk(system, size_bytes=DISK_BYTES) as disk:
            everywhere = points(disk, seed=seed)
            for weather in Weather:
                began = time.monotonic()
                outcomes = list(sweep(disk, everywhere[::every], weather, seed=seed))
                broken = [outcome for outcome in outcomes if outcome.broken]
                chapters.update(outcome.chapter for outcome in outcomes)
                failed += broken
                print(
                    f"{system.name:<16}{weather:<10}{len(everywhere):>7}{len(outcomes):>7}"
                    f"{len(outcomes) - len(broken):>11}{time.monotonic() - began:>7.1f}",
                    flush=True,
                )
    print(", ".join(f"{chapter} {count}" for chapter, count in chapters.items()))
    total = sum(chapters.values())
    print(f"{total} cuts, {total - len(failed)} recovered")
    for outcome in failed[:_SHOWN]:
        print(f"FAIL {outcome}")
    return not failed


def _find_out(system: FileSystem, name: str) -> bool:
    """Cut until a broken habit shows."""
    with CuttableDisk(system, size_bytes=DISK_BYTES) as disk:
        cuts, outcome = find_out(disk, points(disk), BROKEN[name])
    found = f"found at cut {cuts}: {outcome}" if outcome else f"NOT FOUND in {cuts} cuts"
    print(f"{system.name:<16}{name:<26}{found}", flush=True)
    return outcome is not None
