"""Starts under way: from before a start looks at what there is until it has claimed a generation.

Meanwhile it relies on a checkpoint that no claim names yet, so nothing may be removed. Its mark is
there before it looks, and a prune looks for marks after it has put up its own: whichever comes
second sees the first.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from keepstep.commit.layout import STARTING, new_attempt, parse_starting, starting_key
from keepstep.commit.lineage import list_generations
from keepstep.errors import ClaimInDoubt, StorageError
from keepstep.storage.base import Storage

logger = logging.getLogger("keepstep.resume")


@dataclass(frozen=True, slots=True)
class Start:
    """One start, announced."""

    key: str
    newest_generation: int
    """When it was announced. The start may claim the next one, and no other."""


def announce_start(storage: Storage) -> Start:
    """Keep checkpoints from being removed until the start is over.

    *Ranks:* coordinator, before it looks for checkpoints. *Durability:* the mark is durable.
    """
    newest = max(list_generations(storage), default=0)
    start = Start(starting_key(newest, new_attempt()), newest)
    storage.put(start.key, b"")
    return start


def end_start(storage: Storage, start: Start) -> None:
    """Take the mark down, and those of starts that died and can claim nothing any more.

    *Ranks:* coordinator, after the claim or in place of it. What fails is logged: once a generation
    is claimed, marks of before mean nothing.
    """
    try:
        active = set(starts_under_way(storage))
        marks = [info.key for info in storage.list(STARTING)]
        storage.delete([key for key in marks if key not in active or key == start.key])
    except StorageError as error:
        logger.warning("%s is left in %s: %s", start.key, storage.uri, error)


@contextmanager
def announced_start(storage: Storage) -> Iterator[Start]:
    """:func:`announce_start`, and :func:`end_start` in the end.

    If a claim got no answer, the mark stays: the claim may yet be carried out, and what it resumes
    from must be there then. The next claim makes the mark void.
    """
    start = announce_start(storage)
    try:
        yield start
    except ClaimInDoubt:
        raise
    except BaseException:
        end_start(storage, start)
        raise
    end_start(storage, start)


def starts_under_way(storage: Storage) -> tuple[str, ...]:
    """Marks of starts that may still claim a generation."""
    # In this order: a start whose mark is gone has claimed what is listed then.
    marks = {info.key: parse_starting(info.key) for info in storage.list(STARTING)}
    newest = max(list_generations(storage), default=0)
    return tuple(key for key, seen in marks.items() if seen is not None and seen >= newest)
