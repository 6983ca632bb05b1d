"""Which unfinished uploads nobody can finish any more."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from keepstep.commit.layout import (
    GENERATIONS,
    LEDGER,
    PINS,
    PRUNED,
    QUARANTINE,
    SKIPS,
    STARTING,
    STEPS,
    CheckpointId,
)
from keepstep.storage.base import Upload
from keepstep.storage.local import TEMPORARY
from keepstep.storage.probe import PROBE

_OURS = (GENERATIONS, QUARANTINE, LEDGER, PINS, PRUNED, SKIPS, STARTING, PROBE, TEMPORARY)


def stale_uploads(uploads: Iterable[Upload], newest_generation: int) -> list[Upload]:
    """Those of attempts of earlier generations: what such an attempt commits does not count."""
    return [
        upload
        for upload in uploads
        if (attempt := _attempt_of(upload.key)) is not None
        and attempt.generation < newest_generation
    ]


def forgotten_uploads(
    uploads: Iterable[Upload], *, older_than: timedelta, now: datetime
) -> list[Upload]:
    """Those of a run that are so old that whoever began them must be dead.

    What lies where no run puts anything is somebody else's.
    """
    return [
        upload for upload in uploads if _is_ours(upload.key) and now - upload.began > older_than
    ]


def _is_ours(key: str) -> bool:
    return _attempt_of(key) is not None or key.startswith(_OURS)


def _attempt_of(key: str) -> CheckpointId | None:
    if not key.startswith(STEPS):
        return None
    return CheckpointId.parse(key.removeprefix(STEPS).partition("/")[0])
