"""Many histories: those with one crash, at every operation in turn; and those that seeds draw."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from keepstep.testing.simulation.history import History, Outcome
from keepstep.testing.simulation.naming import name_of, plan_of
from keepstep.testing.simulation.plan import Event, Kind, Plan, draw_plan
from keepstep.testing.simulation.sites import Site

_CRASHES = (Kind.KILL, Kind.KILL_JOB, Kind.CUT_POWER)
_MOST_FAILURES = 20


@dataclass
class Findings:
    """What came of many histories."""

    histories: int = 0
    saves: int = 0
    operations: int = 0
    happened: Counter[Kind] = field(default_factory=Counter)
    crashed: set[Site] = field(default_factory=set)
    visited: dict[Site, tuple[str, int]] = field(default_factory=dict)
    """Every site, with a plan and the operation at which it was passed."""
    failures: dict[str, str] = field(default_factory=dict)
    """By the plan: the first thing that must not be."""

    def add(self, outcome: Outcome) -> None:
        """Count one history."""
        self.histories += 1
        self.saves += outcome.saves
        self.operations += outcome.operations
        self.happened.update(outcome.happened)
        self.crashed |= outcome.crashed
        if outcome.visited.keys() - self.visited.keys():
            name = name_of(outcome.plan)
            for site, at in outcome.visited.items():
                self.visited.setdefault(site, (name, at))
        if outcome.violations:
            self.failures[name_of(outcome.plan)] = outcome.violations[0]

    def merge(self, other: "Findings") -> None:
        """Count what another process found."""
        self.histories += other.histories
        self.saves += other.saves
        self.operations += other.operations
        self.happened += other.happened
        self.crashed |= other.crashed
        self.visited = other.visited | self.visited
        self.failures |= other.failures

    @property
    def missed(self) -> list[Site]:
        """Where nobody was killed yet."""
        return sorted(self.visited.keys() - self.crashed)


def explore(first_seed: int, saves: int, *, processes: int = 1) -> Findings:
    """Explore until so many saves were tried; then crash wherever nobody was killed yet.

    *Blocks:* until it is done. The same arguments give the same findings.
    """
    share = -(-saves // processes)
    findings = Findings()
    if processes == 1:
        findings.merge(_explore_share(first_seed, share, 0, 1))
    else:
        with ProcessPoolExecutor(processes) as pool:
            shares = [
                pool.submit(_explore_beside_others, first_seed, share, number, processes)
                for number in range(processes)
            ]
            for one in shares:
                findings.merge(one.result())
    _crash_where_missed(findings)
    return findings


def crashes_of(plan: Plan) -> Iterator[Plan]:
    """The plan with one crash, at each of its operations in turn, of each kind."""
    operations = History(plan).run().operations
    for at in range(1, operations + 1):
        for kind in _CRASHES:
            if plan.is_disk or kind is not Kind.CUT_POWER:
                yield replace(plan, events=(Event(at, kind),))


def quiet(seed: int, *, is_disk: bool, world_size: int, saves: int) -> Plan:
    """The first plan from a seed on with this store, in which nothing happens."""
    plan = draw_plan(seed)
    while plan.is_disk != is_disk or plan.keep != "last=1":
        plan = draw_plan(plan.seed + 1)
    return replace(plan, world_size=world_size, saves=saves, events=())


def _explore_beside_others(first_seed: int, saves: int, number: int, processes: int) -> Findings:
    if hasattr(os, "sched_setaffinity"):  # a baton that goes from core to core takes longer
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
        # A thread that is given the baton is not to run before the giver has let go of everything.
        with suppress(OSError):  # where it is not allowed, it only takes longer
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # A history is one cycle, dropped as a whole: to look for cycles rarely is enough.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    return _explore_share(first_seed, saves, number, processes)


def _explore_share(first_seed: int, saves: int, number: int, processes: int) -> Findings:
    findings = Findings()
    for place, plan in enumerate(_plans(first_seed)):
        if place % processes == number:
            findings.add(History(plan).run())
            if findings.saves >= saves or len(findings.failures) >= _MOST_FAILURES:
                break
    return findings


def _plans(first_seed: int) -> Iterator[Plan]:
    for is_disk in (True, False):
        for world_size in (1, 2, 3):
            base = quiet(first_seed, is_disk=is_disk, world_size=world_size, saves=3)
            yield from crashes_of(base)
    while True:
        yield draw_plan(first_seed)
        first_seed += 1


def _crash_where_missed(findings: Findings) -> None:
    """Run a history again that passed a site, and kill whoever passes it."""
    for _ in range(4):  # who is killed elsewhere may lead to sites that are new
        if not findings.missed:
            return
        for site in findings.missed:
            name, at = findings.visited[site]
            plan = plan_of(name)
            more = Event(at, Kind.KILL)
            findings.add(History(replace(plan, events=tuple(sorted((*plan.events, more))))).run())
