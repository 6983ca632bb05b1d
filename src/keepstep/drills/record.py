"""One drill as it went, in one file: judged from it, drawn from it, performed again from it.

A record holds everything that judges, reports and a replay need, and no path of this machine is
needed to read it. It is JSON, compressed where it is long.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from keepstep.drills.history import tell
from keepstep.drills.inject import Damage
from keepstep.drills.remains import Remains
from keepstep.drills.results import Injection, Result
from keepstep.drills.scenario import Drill
from keepstep.drills.verdicts import Standing, Verdict, standings
from keepstep.errors import ConfigError

FORMAT = 1
NAME = "record.json"
COMPRESSED_NAME = f"{NAME}.gz"

_LONG_BYTES = 1_000_000
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was done, what was left, and what judges say of it."""

    drill: Drill
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of every job, beside where it keeps its run and its data: what a replay starts with."""
    sabotage: str | None = None
    """Which part of a restore was broken on purpose."""
    began: float = 0.0
    """Unix seconds."""
    seconds: float = 0.0
    """Its own; the uninterrupted run that drills share is not counted."""
    skipped: str | None = None
    """Why it was not performed. Nothing below is there then."""
    broken_off: str | None = None
    """Why it could not be acted to its end. Such a drill has failed."""
    injections: tuple[Injection, ...] = ()
    """By time."""
    results: tuple[Result, ...] = ()
    """Of the drill's jobs, in the order in which they ended."""
    damages: tuple[Damage, ...] = ()
    objects_before: Mapping[str, str] = field(default_factory=dict)
    """Digests of all objects after the damage, before the next start."""
    objects_after: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else players noted for judges of their own: JSON values."""
    remains: Remains | None = None
    """What the run left."""
    reference: Remains | None = None
    """What the uninterrupted run left."""
    verdicts: tuple[Verdict, ...] = ()
    directory: str | None = None
    """Where runs and logs were put."""

    @property
    def name(self) -> str:
        return self.drill.name

    @property
    def is_good(self) -> bool:
        """Whether nobody objects; also of a drill that was skipped."""
        return self.broken_off is None and all(verdict.is_good for verdict in self.verdicts)

    @property
    def outcome(self) -> str:
        """``PASS``, ``FAIL`` or ``SKIP``."""
        if self.skipped is not None:
            return "SKIP"
        return "PASS" if self.is_good else "FAIL"

    @property
    def standings(self) -> dict[str, Standing]:
        """What the drill says of each of the promises ``I1`` to ``I11``."""
        return standings(self.verdicts)

    @property
    def recovery_seconds(self) -> float | None:
        """The longest time from a job's last sign of life to its successor's first new step."""
        is_told_by_wrong_clocks = any(self.notes.get("skew_seconds", ()))
        if self.remains is None or self.drill.continues_reference or is_told_by_wrong_clocks:
            return None
        return max(tell(self.remains).recoveries_seconds, default=None)


def write_record(record: Record, directory: Path) -> Path:
    """Write it into its directory; returns the file."""
    document = {"format": FORMAT, **_ADAPTER.dump_python(record, mode="json")}
    data = TypeAdapter(dict[str, Any]).dump_json(document)
    is_long = len(data) > _LONG_BYTES
    name, other = (COMPRESSED_NAME, NAME) if is_long else (NAME, COMPRESSED_NAME)
    (directory / name).write_bytes(gzip.compress(data) if is_long else data)
    (directory / other).unlink(missing_ok=True)  # of the same drill, before it was judged
    return directory / name


def read_record(path: Path) -> Record:
    """One record; of a directory, the one in it.

    *Raises:* ``ConfigError`` if there is none, or none that this version can read.
    """
    if path.is_dir():
        path = next((p for p in (path / NAME, path / COMPRESSED_NAME) if p.exists()), path / NAME)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(_GZIP) else data
        document = TypeAdapter(dict[str, Any]).validate_json(data)
        if document.pop("format", None) != FORMAT:
            raise ConfigError(f"{path} is no record of a drill in format {FORMAT}: run it again")
        return _ADAPTER.validate_python(document)
    except (OSError, EOFError) as error:
        raise ConfigError(f"the record of a drill cannot be read: {path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} is no record of a drill: {where}: {first['msg']}") from error


_ADAPTER = TypeAdapter(Record)
