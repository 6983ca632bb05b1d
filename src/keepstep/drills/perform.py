"""One drill from start to verdict: act, record what was left, judge the record."""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from keepstep.drills.evidence import evidence_of
from keepstep.drills.inject import copy_objects, fingerprints
from keepstep.drills.judges import judge
from keepstep.drills.record import Record, write_record
from keepstep.drills.remains import Remains, read_remains
from keepstep.drills.requirements import lacking
from keepstep.drills.results import Result
from keepstep.drills.sabotage import spoiling
from keepstep.drills.scenario import REFERENCE_WORLD_SIZE, SETTINGS, Drill, Leg
from keepstep.drills.stage import Stage
from keepstep.drills.verdicts import Verdict
from keepstep.errors import BarrierTimeout, ConfigError, KeepstepError
from keepstep.storage.base import Storage
from keepstep.storage.opening import open_storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Reference:
    """An uninterrupted run."""

    result: Result
    directory: Path
    remains: Remains


class Ground:
    """Where drills are performed, and the uninterrupted runs they share.

    Args:
        directory: Of logs, records and prepared data.
        uri: Below which the runs are kept; by default in the directory.
        settings: Of every job, beside what the drills themselves set.
        seed: Decides on whatever drills leave to chance.
        sabotage: Which part of each restore is broken on purpose, if any.
    """

    def __init__(
        self,
        directory: Path,
        uri: str | None = None,
        *,
        settings: Mapping[str, object] = SETTINGS,
        seed: int = 0,
        sabotage: str | None = None,
    ) -> None:
        self._directory = directory.absolute()
        self._uri = uri.rstrip("/") if uri else None
        self._settings = settings
        self._seed = seed
        self._sabotage = sabotage
        self._references: dict[object, _Reference] = {}
        self._numbers = count(1)

    def perform(self, drill: Drill) -> Record:
        """Act, record what was left, judge, write the record down.

        A drill that cannot be acted to its end has failed.
        *Raises:* ``ConfigError`` if there is a directory of an earlier one.
        """
        record = Record(
            drill=drill,
            seed=self._seed,
            settings=dict(self._settings),
            sabotage=self._sabotage,
            began=time.time(),
        )
        if (reason := lacking(drill.needs)) is not None:
            return replace(record, skipped=reason)
        directory = self._new_directory(drill.name)
        record = replace(record, directory=str(directory))
        try:
            reference = None if drill.is_open_ended else self._reference(drill)
            record = self._act(record, directory, reference)
        except Exception as error:  # noqa: BLE001  # one drill must not cost the others, nor its own record
            record = replace(record, broken_off=_told(error))
        write_record(record, directory)  # what was seen outlives a failure to judge it
        record = judged(record)
        write_record(record, directory)
        return record

    def discard(self, record: Record) -> None:
        """Remove what a drill left."""
        if record.directory is not None:
            self._remove(Path(record.directory))

    def discard_references(self) -> None:
        """Remove the uninterrupted runs and the prepared data."""
        for reference in self._references.values():
            self._remove(reference.directory)
        shutil.rmtree(self._data, ignore_errors=True)
        self._references.clear()

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _act(self, record: Record, directory: Path, reference: _Reference | None) -> Record:
        drill, storage = record.drill, self._run_of(directory)
        start = time.monotonic()
        if drill.continues_reference and reference is not None:
            copy_objects(self._run_of(reference.directory), storage)
        stage = Stage(
            drill.name,
            storage,
            self._settings_of(drill, directory),
            directory,
            seed=record.seed,
            rules=spoiling(record.sabotage) if record.sabotage else "",
        )
        try:
            stage.play(drill.acts)
        except Exception as error:  # noqa: BLE001  # what was acted until then is told and judged
            record = replace(record, broken_off=_told(error))
        record = replace(record, seconds=time.monotonic() - start)
        record = replace(
            record,
            injections=tuple(stage.injections),
            results=tuple(stage.results),
            damages=tuple(stage.damages),
            objects_before=stage.objects_before,
            objects_after=fingerprints(storage),
            notes=stage.notes,
            remains=stage.remains or read_remains(storage),
            reference=reference.remains if reference else None,
        )
        is_late = reference is None and "steps" in stage.notes
        return self._with_late_reference(record) if is_late else record

    def _with_late_reference(self, record: Record) -> Record:
        """With the uninterrupted run, now that it is known how long it has to be."""
        whole = (("train.steps", record.notes["steps"]), ("checkpoint.keep", "all"))
        drill = replace(record.drill, settings=(*record.drill.settings, *whole))
        try:
            return replace(record, reference=self._reference(drill).remains)
        except KeepstepError as error:  # what was acted is told in any case
            return replace(record, broken_off=record.broken_off or str(error))

    def _reference(self, drill: Drill) -> _Reference:
        """The uninterrupted run; it is made when it is first asked for."""
        key = (drill.strategy, drill.settings)
        if key not in self._references:
            self._references[key] = self._run_uninterrupted(drill)
        reference = self._references[key]
        if not reference.result.is_as_expected:
            raise BarrierTimeout(f"the uninterrupted run failed; see {reference.result.log}")
        return reference

    def _run_uninterrupted(self, drill: Drill) -> _Reference:
        name = f"uninterrupted-{next(self._numbers)}"
        directory = self._new_directory(name)
        storage = self._run_of(directory)
        stage = Stage(name, storage, self._settings_of(drill, directory), directory)
        stage.play((Leg(REFERENCE_WORLD_SIZE),))
        return _Reference(stage.results[0], directory, read_remains(storage))

    def _settings_of(self, drill: Drill, directory: Path) -> dict[str, object]:
        return {
            "data.path": self._data,
            **self._settings,
            "parallel.strategy": drill.strategy,
            **dict(drill.settings),
            "uri": self._uri_of(directory),
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


def judged(record: Record) -> Record:
    """The record with what today's judges say of it."""
    if record.skipped is not None:
        return record
    try:
        evidence = evidence_of(record)
    except Exception as error:  # noqa: BLE001  # what a run left may be beyond telling; other drills go on
        untold = Verdict("told", "I8", is_good=False, evidence=_told(error))
        return replace(record, verdicts=(untold,))
    found = (judge(name, evidence) for name in record.drill.judges)
    verdicts = tuple(verdict for verdict in found if verdict is not None)
    if record.broken_off is not None:
        cut = Verdict("acted", "I8", is_good=False, evidence=record.broken_off)
        verdicts = (cut, *verdicts)
    return replace(record, verdicts=verdicts)


def _told(error: Exception) -> str:
    """Errors of keepstep say all there is to say; of others the traceback goes to the log."""
    if isinstance(error, KeepstepError):
        return str(error)
    logger.error("a drill failed by an error of its own", exc_info=error)
    return f"{type(error).__name__}: {error}"
