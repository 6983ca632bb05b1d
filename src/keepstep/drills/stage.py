"""Where the acts of one drill are played: what players use, and where they note what they did."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from keepstep.drills.inject import Damage
from keepstep.drills.results import Injection, Result
from keepstep.drills.run import Job
from keepstep.drills.scenario import Act, Leg
from keepstep.storage.base import Storage


@dataclass
class Stage:
    """One drill under way. A player gets it with its act.

    What a player starts goes into ``exits``, which ends it however the drill ends; what a later act
    needs, into ``held``.
    """

    name: str
    storage: Storage
    """Of the run."""
    settings: Mapping[str, object]
    """Of every job."""
    directory: Path
    """For logs."""
    seed: str = ""
    """Decides on whatever is left to chance."""
    rules: str = ""
    """Failpoints of every job, beside its own."""
    results: list[Result] = field(default_factory=list)
    injections: list[Injection] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    objects_before: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    """JSON values for judges."""
    held: dict[str, Any] = field(default_factory=dict)
    exits: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._numbers: Iterator[int] = count(1)
        self._failpoint_logs: list[Path] = []

    def play(self, acts: Iterable[Act]) -> None:
        """Each act by its player, in turn.

        *Raises:* ``BarrierTimeout`` if a job does not do what the acts wait for.
        """
        with self.exits:
            for act in acts:
                resolve_name(act.player)(self, act)
        self.injections += _fired(self._failpoint_logs)
        self.injections.sort(key=lambda injection: injection.time)

    def start(self, leg: Leg) -> Job:
        """Start a job. Enter it, or leave it to ``exits``."""
        number = next(self._numbers)
        return Job(
            leg,
            self.settings,
            environ=os.environ,
            failpoints=self.failpoints(f"failpoints-{number}.jsonl", leg.failpoints),
            log=self.directory / f"job-{number}.log",
        )

    def failpoints(self, log_name: str, rules: str) -> dict[str, str]:
        """What arms the failpoints of a job; what they do is noted here."""
        log = self.directory / log_name
        if log not in self._failpoint_logs:
            self._failpoint_logs.append(log)
        return {
            "KEEPSTEP_FAILPOINTS": ";".join(filter(None, (rules, self.rules))),
            "KEEPSTEP_FAILPOINTS_LOG": str(log),
        }

    def note(self, kind: str, target: str, detail: str = "") -> None:
        """Note what was just done to the run, for reports and judges."""
        self.injections.append(Injection(time=time.time(), kind=kind, target=target, detail=detail))


def _fired(logs: Iterable[Path]) -> list[Injection]:
    """What crash sites did, as the processes noted it right before."""
    lines = [line for log in logs if log.exists() for line in log.read_text().splitlines()]
    return [
        Injection(
            time=fired["time"],
            kind=fired["action"],
            target=f"rank {fired['rank']}",
            detail=fired["site"] + ("" if fired["step"] is None else f" of step {fired['step']}"),
        )
        for fired in map(json.loads, lines)
        if (fired["site"], fired["action"]) != ("step.after", "sleep")  # that only paces a job
    ]
