"""Stretches of data that training is to leave out, once it has gone back behind them."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from keepstep.commit.canonical import seal, unseal
from keepstep.commit.layout import SKIPS, parse_skip, skip_key
from keepstep.errors import CorruptCheckpointError, ObjectExists
from keepstep.storage.base import Storage


@dataclass(frozen=True, slots=True, order=True)
class Skip:
    """Samples ``start`` to ``stop``, counted as the run consumes them."""

    start: int
    stop: int


def mark_skip(storage: Storage, skip: Skip, *, reason: str) -> None:
    """Have every later generation leave a stretch out. It stays marked for ever.

    *Ranks:* coordinator. *Durability:* the mark is durable once this returns.
    """
    mark = {
        "start": skip.start,
        "stop": skip.stop,
        "reason": reason,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    with suppress(ObjectExists):  # marked before
        storage.create(skip_key(skip.start, skip.stop), seal(mark))


def read_skips(storage: Storage) -> tuple[Skip, ...]:
    """Every stretch that was marked. *Raises:* ``CorruptCheckpointError``."""
    skips = []
    for info in storage.list(SKIPS):
        if parse_skip(info.key) is None:
            continue
        mark = unseal(storage.get(info.key), info.key)
        try:
            skips.append(Skip(int(mark["start"]), int(mark["stop"])))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCheckpointError(f"{info.key}: {error!r}", key=info.key) from error
    return tuple(sorted(skips))


def pass_over(samples: int, skips: Iterable[Skip]) -> int:
    """The next position that is not left out."""
    for skip in sorted(skips):
        if skip.start <= samples < skip.stop:
            samples = skip.stop
    return samples
