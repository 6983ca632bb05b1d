"""One drill from start to verdict: act, read what was left, judge."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from keepstep.drills.evidence import Evidence, Verdict
from keepstep.drills.history import read_history
from keepstep.drills.inject import Damage, fingerprints, spoil
from keepstep.drills.judge import judge
from keepstep.drills.run import Job, Result
from keepstep.drills.scenario import (
    REFERENCE_WORLD_SIZE,
    SETTINGS,
    Act,
    Drill,
    Ending,
    Leg,
    Spoil,
    Thaw,
)
from keepstep.errors import BarrierTimeout, ConfigError, KeepstepError
from keepstep.storage.base import Storage
from keepstep.storage.opening import open_storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a drill."""

    drill: str
    verdicts: tuple[Verdict, ...] = ()
    skipped: str | None = None
    """Why it was not run."""
    seconds: float = 0.0
    """Its own; the uninterrupted run that drills share is not counted."""
    recovery_seconds: float | None = None
    """The longest time from the last sign of life to the successor's first step."""
    directory: Path | None = None

    @property
    def is_good(self) -> bool:
        return all(verdict.is_good for verdict in self.verdicts)


class Ground:
    """Where drills are performed, and the uninterrupted runs they share.

    Args:
        directory: Of logs and prepared data.
        uri: Below which the runs are kept; by default in the directory.
    """

    def __init__(self, directory: Path, uri: str | None = None) -> None:
        self._directory = directory.absolute()
        self._uri = uri.rstrip("/") if uri else None
        self._references: dict[object, Result] = {}
        self._numbers = count(1)

    def perform(self, drill: Drill) -> Outcome:
        """Act, read what was left, judge.

        A drill that cannot be acted to its end has failed.
        *Raises:* ``ConfigError`` if there is a directory of an earlier one.
        """
        if drill.needs and find_spec(drill.needs) is None:
            return Outcome(drill=drill.name, skipped=f"{drill.needs} is not installed")
        directory = self._new_directory(drill.name)
        start = time.monotonic()
        recovery_seconds = None
        try:
            reference = self._reference(drill)
            start = time.monotonic()
            evidence = self._act(drill, directory, reference)
            verdicts = tuple(judge(name, evidence) for name in drill.judges)
            if not drill.continues_reference:
                recovery_seconds = evidence.history.recovery_seconds
        except KeepstepError as error:
            verdicts = (Verdict("endings", "I8", is_good=False, evidence=str(error)),)
        return Outcome(
            drill=drill.name,
            verdicts=verdicts,
            seconds=time.monotonic() - start,
            recovery_seconds=recovery_seconds,
            directory=directory,
        )

    def discard(self, outcome: Outcome) -> None:
        """Remove what a drill left."""
        if outcome.directory is not None:
            self._remove(outcome.directory)

    def discard_references(self) -> None:
        """Remove the uninterrupted runs and the prepared data."""
        for result in self._references.values():
            self._remove(result.log.parent)
        shutil.rmtree(self._data, ignore_errors=True)
        self._references.clear()

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _act(self, drill: Drill, directory: Path, reference: Path) -> Evidence:
        storage = self._run_of(directory)
        if drill.continues_reference:
            _copy_objects(self._run_of(reference), storage)
        stage = _Stage(drill.name, storage, self._settings(drill, directory), directory)
        stage.play(drill.acts)
        return Evidence(
            history=read_history(storage),
            reference=read_history(self._run_of(reference)),
            results=tuple(stage.results),
            damages=tuple(stage.damages),
            objects_before=stage.objects_before,
            objects_after=fingerprints(storage),
            samples_per_epoch=drill.samples_per_epoch,
        )

    def _reference(self, drill: Drill) -> Path:
        """The directory of the uninterrupted run; it is made when it is first asked for."""
        key = (drill.strategy, drill.settings)
        if key not in self._references:
            self._references[key] = self._run_uninterrupted(drill)
        result = self._references[key]
        if not result.is_as_expected:
            raise BarrierTimeout(f"the uninterrupted run failed; see {result.log}")
        return result.log.parent

    def _run_uninterrupted(self, drill: Drill) -> Result:
        name = f"uninterrupted-{next(self._numbers)}"
        directory = self._new_directory(name)
        settings = self._settings(drill, directory)
        stage = _Stage(name, self._run_of(directory), settings, directory)
        stage.play((Leg(REFERENCE_WORLD_SIZE),))
        return stage.results[0]

    def _settings(self, drill: Drill, directory: Path) -> dict[str, object]:
        return {
            **SETTINGS,
            "parallel.strategy": drill.strategy,
            **dict(drill.settings),
            "uri": self._uri_of(directory),
            "data.path": self._data,
        }

    def _new_directory(self, name: str) -> Path:
        directory = self._directory / name
        if directory.exists():
            raise ConfigError(f"{directory} is there from an earlier drill: choose another --dir")
        if next(self._run_of(directory).list(""), None) is not None:
            raise ConfigError(
                f"{self._run_of(directory).uri} is there from an earlier drill: choose another "
                "--uri"
            )
        directory.mkdir(parents=True)
        return directory

    def _run_of(self, directory: Path) -> Storage:
        """Where the run of a drill is kept."""
        return open_storage(self._uri_of(directory))

    def _uri_of(self, directory: Path) -> str:
        return f"{self._uri}/{directory.name}" if self._uri else f"{directory}/run"

    def _remove(self, directory: Path) -> None:
        run = self._run_of(directory)
        if self._uri:
            run.delete([info.key for info in run.list("")])
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class _Stage:
    """Where the acts of one drill are played."""

    name: str
    storage: Storage
    settings: dict[str, object]
    directory: Path
    results: list[Result] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    objects_before: dict[str, str] = field(default_factory=dict)

    def play(self, acts: Iterable[Act]) -> None:
        """*Raises:* ``BarrierTimeout`` if a job does not do what the acts wait for."""
        logs = (self.directory / f"job-{number}.log" for number in count(1))
        with ExitStack() as jobs:
            frozen: Job | None = None
            for act in acts:
                match act:
                    case Spoil():
                        self.damages += spoil(self.storage, act, seed=self.name)
                        self.objects_before = fingerprints(self.storage)
                    case Leg(ending=Ending.STOPPED):
                        frozen = jobs.enter_context(self._start(act, logs))
                        frozen.freeze()
                    case Leg():
                        with self._start(act, logs) as job:
                            self.results.append(job.wait(act.ending))
                    case Thaw() if frozen is not None:
                        frozen.thaw()
                        self.results.append(frozen.wait(act.ending))

    def _start(self, leg: Leg, logs: Iterator[Path]) -> Job:
        return Job(leg, self.settings, environ=os.environ, log=next(logs))


def _copy_objects(source: Storage, target: Storage) -> None:
    for info in source.list(""):
        target.put(info.key, source.get(info.key))
