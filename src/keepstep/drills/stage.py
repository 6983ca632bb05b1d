"""Where the acts of one drill are played: what players use, and where they note what they did."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from keepstep.drills.inject import Damage
from keepstep.drills.remains import Remains
from keepstep.drills.results import Injection, Result
from keepstep.drills.run import TIMEOUT_SECONDS, Job
from keepstep.drills.scenario import SMALL, Act, Leg
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
    seed: int = 0
    """Decides on whatever is left to chance."""
    rules: str = ""
    """Failpoints of every job, beside its own."""
    results: list[Result] = field(default_factory=list)
    injections: list[Injection] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    objects_before: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    """JSON values for judges."""
    remains: Remains | None = None
    """What the run left, if a player had to look before the end."""
    environ: dict[str, str] = field(default_factory=dict)
    """Of every job, above this process's own."""
    held: dict[str, Any] = field(default_factory=dict)
    exits: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._numbers: Iterator[int] = count(1)
        self._uncollected: list[Path] = []

    @property
    def chance(self) -> str:
        """A seed that no other drill has."""
        return f"{self.seed}/{self.name}"

    @property
    def timeout_seconds(self) -> float:
        """How long a job may take: more if it has more steps than those of most drills."""
        steps = int(str(self.settings.get("train.steps", SMALL.steps)))
        return TIMEOUT_SECONDS * max(1.0, steps / SMALL.steps)

    def play(self, acts: Iterable[Act]) -> None:
        """Each act by its player, in turn.

        *Raises:* ``BarrierTimeout`` if a job does not do what the acts wait for.
        """
        try:
            with self.exits:
                for act in acts:
                    resolve_name(act.player)(self, act)
        finally:
            self.collect()
            self.injections.sort(key=lambda injection: injection.time)

    def start(self, leg: Leg, *, command: Sequence[str] | None = None) -> Job:
        """Start a job, by torchrun or another command. Enter it, or leave it to ``exits``."""
        number = next(self._numbers)
        log = self.directory / f"job-{number}.log"
        return Job(
            leg,
            self.settings,
            environ=os.environ | self.environ,
            failpoints=self.failpoints(_fired_log(log).name, leg.failpoints),
            log=log,
            command=command,
            timeout_seconds=self.timeout_seconds,
        )

    def failpoints(self, log_name: str, rules: str) -> dict[str, str]:
        """What arms the failpoints of a job; what they do is noted here."""
        log = self.directory / log_name
        if log not in self._uncollected:
            self._uncollected.append(log)
        return {
            "KEEPSTEP_FAILPOINTS": ";".join(filter(None, (rules, self.rules))),
            "KEEPSTEP_FAILPOINTS_LOG": str(log),
        }

    def fired(self, job: Job) -> list[dict[str, Any]]:
        """What crash sites of a job have done so far."""
        return read_fired(_fired_log(job.log))

    def collect(self) -> None:
        """Note what crash sites of jobs that are over have done."""
        while self._uncollected:
            fired = read_fired(self._uncollected.pop())
            self.injections += [_injection(line) for line in fired if is_deed(line)]

    def note(self, kind: str, target: str, detail: str = "") -> None:
        """Note what was just done to the run, for reports and judges."""
        self.injections.append(Injection(time=time.time(), kind=kind, target=target, detail=detail))


def is_deed(fired: Mapping[str, Any]) -> bool:
    """A sleep after a step does nothing to a job: it marks a moment, or paces the steps."""
    return (fired["site"], fired["action"]) != ("step.after", "sleep")


def _fired_log(log: Path) -> Path:
    return log.with_name(f"{log.stem}-failpoints.jsonl")


def read_fired(path: Path) -> list[dict[str, Any]]:
    """What crash sites have done, as the processes noted it, each right before."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _injection(fired: Mapping[str, Any]) -> Injection:
    what = f"{fired['argument']} at " if fired["argument"] else ""
    when = "" if fired["step"] is None else f" of step {fired['step']}"
    return Injection(
        time=fired["time"],
        kind=fired["action"],
        target=f"rank {fired['rank']}",
        detail=f"{what}{fired['site']}{when}",
    )
