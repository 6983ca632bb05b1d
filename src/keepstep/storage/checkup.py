"""Everything a run needs of a store, tried out one thing at a time."""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol, runtime_checkable

from keepstep.errors import ExitCode, StorageError
from keepstep.storage.base import Storage
from keepstep.storage.probe import PROBE, creates_exclusively

SAMPLE_BYTES = 32 << 20
_PIECE_BYTES = 4 << 20
_TOLERATED_SKEW = timedelta(minutes=1)


class Verdict(StrEnum):
    PASS = "PASS"  # noqa: S105  # not a password
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one probe."""

    probe: str
    verdict: Verdict
    sentence: str
    """What was seen, and the remedy if it is not good."""
    exit_code: ExitCode = ExitCode.OK
    """What a failure means to a scheduler."""


@runtime_checkable
class TellsTime(Protocol):
    """A store with a clock of its own."""

    def server_time(self, key: str) -> datetime | None:
        """When the store says it wrote an object; ``None`` if it does not say."""
        ...


@runtime_checkable
class KeepsDirectories(Protocol):
    """A store that keeps something of a prefix when all its objects are gone."""

    def remove_directory(self, prefix: str) -> None:
        """Remove it, if nothing is there."""
        ...


class Failed(Exception):
    """The store answered, but not as it must."""


@dataclass(slots=True)
class Scratch:
    """Where the probes write: below a prefix that nothing else uses."""

    storage: Storage
    is_single_writer: bool = False
    """Somebody vouches that no two jobs write here at a time."""
    prefix: str = field(default_factory=lambda: f"{PROBE}{secrets.token_hex(8)}/")
    data: bytes = field(default_factory=lambda: secrets.token_bytes(1 << 16))

    @property
    def key(self) -> str:
        """Of the object that most probes look at."""
        return f"{self.prefix}object"


Outcome = tuple[Verdict, str]


def check_up(storage: Storage, *, is_single_writer: bool = False) -> Iterator[Finding]:
    """Try everything out, and leave nothing behind.

    A probe whose premise has failed is skipped. *Raises:* no ``StorageError``: it is a finding.
    """
    scratch = Scratch(storage, is_single_writer)
    failed: set[str] = set()
    try:
        for name, (probe, premises) in _PROBES.items():
            missing = [premise for premise in premises if premise in failed]
            if missing:
                finding = Finding(name, Verdict.SKIP, f"makes no sense without {missing[0]}")
            else:
                finding = _finding(name, probe, scratch)
            if finding.verdict is Verdict.FAIL or missing:
                failed.add(name)
            yield finding
    finally:
        if "put" not in failed:
            _clean_up(scratch)


def _clean_up(scratch: Scratch) -> None:
    storage = scratch.storage
    with suppress(StorageError):  # whoever cannot delete has read so among the findings
        storage.delete([info.key for info in storage.list(scratch.prefix)])
    if isinstance(storage, KeepsDirectories):
        storage.remove_directory(PROBE)


def worst_exit_code(findings: Iterable[Finding]) -> ExitCode:
    """That of the first failure: what follows may be its consequence."""
    codes = (f.exit_code for f in findings if f.verdict is Verdict.FAIL)
    return next(codes, ExitCode.OK)


def _finding(name: str, probe: Callable[[Scratch], Outcome], scratch: Scratch) -> Finding:
    try:
        return Finding(name, *probe(scratch))
    except Failed as failure:
        return Finding(name, Verdict.FAIL, str(failure), ExitCode.CONFIG)
    except StorageError as error:
        return Finding(name, Verdict.FAIL, str(error), error.exit_code)


def _put(scratch: Scratch) -> Outcome:
    scratch.storage.put(scratch.key, scratch.data)
    return Verdict.PASS, "an object was written"


def _get(scratch: Scratch) -> Outcome:
    if scratch.storage.get(scratch.key) != scratch.data:
        raise Failed("the object read is not the one that was written")
    return Verdict.PASS, "it was read back at once, the same"


def _range(scratch: Scratch) -> Outcome:
    start, stop = 1000, 1000 + 4096
    buffer = bytearray(stop - start)
    with scratch.storage.open_reader(scratch.key) as reader:
        count = reader.read_into(start, memoryview(buffer))
    if (count, bytes(buffer)) != (len(buffer), scratch.data[start:stop]):
        raise Failed("a range read is not what was written there: resharded loads need ranges")
    return Verdict.PASS, "a part of it was read by itself"


def _list(scratch: Scratch) -> Outcome:
    found = {info.key: info.size_bytes for info in scratch.storage.list(scratch.prefix)}
    if found != {scratch.key: len(scratch.data)}:
        raise Failed(f"a listing right after the write shows {found or 'nothing'}")
    return Verdict.PASS, "a listing shows it at once, with its size"


def _overwrite(scratch: Scratch) -> Outcome:
    scratch.data = scratch.data[::-1]
    scratch.storage.put(scratch.key, scratch.data)
    if scratch.storage.get(scratch.key) != scratch.data:
        raise Failed("an old object was read after it had been replaced; is there a cache between?")
    return Verdict.PASS, "what replaced it is read at once"


def _create(scratch: Scratch) -> Outcome:
    if creates_exclusively(scratch.storage):
        return Verdict.PASS, "of two creates of a name the second was refused"
    meaning = "this store cannot create exclusively: two jobs at once could commit over each other"
    if scratch.is_single_writer:
        return Verdict.WARN, f"{meaning}; never start two jobs on a run here"
    raise Failed(
        f"{meaning}; use another store, or, if never two work on a run, storage.single_writer=true"
    )


def _delete(scratch: Scratch) -> Outcome:
    key = f"{scratch.prefix}deleted"
    scratch.storage.put(key, b"")
    scratch.storage.delete([key])
    if key in {info.key for info in scratch.storage.list(scratch.prefix)}:
        raise Failed("a deleted object is still listed")
    return Verdict.PASS, "a deleted object is gone at once"


def _clock(scratch: Scratch) -> Outcome:
    storage = scratch.storage
    if not isinstance(storage, TellsTime):
        return Verdict.SKIP, "the store has no clock of its own"
    key = f"{scratch.prefix}clock"
    before = datetime.now(UTC)
    storage.put(key, b"")
    after = datetime.now(UTC)
    told = storage.server_time(key)
    if told is None:
        return Verdict.SKIP, "the store does not tell when it wrote an object"
    skew = _skew(before, told, after)
    if abs(skew) > _TOLERATED_SKEW:
        return Verdict.WARN, (
            f"the clocks of this machine and the store are {skew.total_seconds():+.0f} s apart: "
            "set this machine's, for instance by NTP; stores refuse requests beyond 900 s"
        )
    return Verdict.PASS, f"the clocks agree to within {max(1, abs(skew).total_seconds()):.0f} s"


def _skew(before: datetime, told: datetime, after: datetime) -> timedelta:
    """By how much the store's clock is ahead; it tells whole seconds only."""
    if told > after:
        return told - after
    if told < before - timedelta(seconds=1):
        return told - before
    return timedelta(0)


def _throughput(scratch: Scratch) -> Outcome:
    storage, key = scratch.storage, f"{scratch.prefix}sample"
    piece = memoryview(secrets.token_bytes(_PIECE_BYTES))
    offsets = range(0, SAMPLE_BYTES, _PIECE_BYTES)
    with ThreadPoolExecutor(storage.capabilities.concurrency) as threads:
        start = time.monotonic()
        with storage.open_writer(key, SAMPLE_BYTES) as writer:
            list(threads.map(lambda offset: writer.write(offset, piece), offsets))
        written = time.monotonic()
        with storage.open_reader(key) as reader:

            def is_same(offset: int) -> bool:
                buffer = memoryview(bytearray(_PIECE_BYTES))
                return reader.read_into(offset, buffer) == _PIECE_BYTES and buffer == piece

            are_same = all(threads.map(is_same, offsets))
        read = time.monotonic()
    if not are_same:
        raise Failed("a large object read is not the one that was written")
    return Verdict.PASS, (
        f"{SAMPLE_BYTES >> 20} MiB written at {_speed(written - start)}, "
        f"read at {_speed(read - written)}, {storage.capabilities.concurrency} requests at a time"
    )


def _speed(seconds: float) -> str:
    return f"{SAMPLE_BYTES / 1e6 / max(seconds, 1e-9):.0f} MB/s"


_PROBES: dict[str, tuple[Callable[[Scratch], Outcome], tuple[str, ...]]] = {
    "put": (_put, ()),
    "get": (_get, ("put",)),
    "range": (_range, ("put", "get")),
    "list": (_list, ("put",)),
    "overwrite": (_overwrite, ("put", "get")),
    "delete": (_delete, ("put", "list")),
    "create": (_create, ("put", "get")),
    "clock": (_clock, ("put",)),
    "throughput": (_throughput, ("put", "get")),
}
"""By name: the probe, and those that make no sense to go without."""
