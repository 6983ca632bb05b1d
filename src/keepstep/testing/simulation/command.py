"""``python -m keepstep.testing.simulation``: explores, or replays one history."""

import argparse
import logging
import time
from collections import defaultdict
from collections.abc import Sequence

from keepstep.testing.simulation.exploring import Findings, explore
from keepstep.testing.simulation.history import History, Outcome
from keepstep.testing.simulation.naming import name_of, plan_of
from keepstep.testing.simulation.plan import Kind, Plan
from keepstep.testing.simulation.shrinking import shrink
from keepstep.testing.simulation.sites import words


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if nothing went wrong that must not, else 1."""
    parser = argparse.ArgumentParser(prog="keepstep.testing.simulation", description=__doc__)
    parser.add_argument("--saves", type=int, default=100_000, help="explore so many saves")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2, help="explore with so many at a time")
    parser.add_argument("--replay", metavar="PLAN", help="print one history: a seed, or a plan")
    parser.add_argument("--sites", action="store_true", help="list every crash point")
    chosen = parser.parse_args(arguments)
    logging.getLogger("keepstep").setLevel(logging.CRITICAL)  # what goes wrong is meant to
    if chosen.replay is not None:
        return _replay(plan_of(chosen.replay))
    start = time.monotonic()
    findings = explore(chosen.seed, chosen.saves, processes=chosen.processes)
    _report(findings, time.monotonic() - start, with_sites=chosen.sites)
    for name, violation in list(findings.failures.items())[:1]:
        print(f"\n{name}: {violation}\nshrunk:")
        _replay(shrink(plan_of(name), _violation_of))
    return 1 if findings.failures else 0


def _replay(plan: Plan) -> int:
    outcome = History(plan, is_traced=True).run()
    print(readable(outcome))
    return 1 if outcome.violations else 0


def readable(outcome: Outcome) -> str:
    """A history, one line per operation."""
    end = [f"--replay '{name_of(outcome.plan)}'", *outcome.violations[:1]]
    return "\n".join([str(outcome.plan), *outcome.trace, *end])


def _violation_of(plan: Plan) -> str | None:
    return next(iter(History(plan).run().violations), None)


def _report(findings: Findings, seconds: float, *, with_sites: bool) -> None:
    print(
        f"{findings.saves} saves in {findings.histories} histories, {findings.operations} "
        f"operations, {seconds:.1f} s"
    )
    print("\nwhat happened, and how often")
    for kind in Kind:
        print(f"  {kind:12} {findings.happened[kind]:8}")
    total, hit = len(findings.visited), len(findings.crashed)
    print(f"\ncrash points: {hit} of {total} hit")
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for site in findings.visited:
        counts[site[:2]][0] += site in findings.crashed
        counts[site[:2]][1] += 1
    for (role, activity), (crashed, visited) in sorted(counts.items()):
        print(f"  {role:12} {activity:12} {crashed:4} of {visited:4}")
    if with_sites:
        for site in sorted(findings.visited):
            print(f"  {'hit   ' if site in findings.crashed else 'missed'} {words(site)}")
    for site in findings.missed:
        print(f"  missed: {words(site)}")
    print(f"\n{len(findings.failures)} histories failed")
    for name, violation in findings.failures.items():
        print(f"  --replay '{name}'  {violation}")
