"""Which unfinished uploads nobody can finish any more."""

from collections.abc import Iterable

from keepstep.commit.layout import STEPS, CheckpointId
from keepstep.storage.base import Upload


def stale_uploads(uploads: Iterable[Upload], newest_generation: int) -> list[Upload]:
    """Those of attempts of earlier generations: what such an attempt commits does not count."""
    return [
        upload
        for upload in uploads
        if (attempt := _attempt_of(upload.key)) is not None
        and attempt.generation < newest_generation
    ]


def _attempt_of(key: str) -> CheckpointId | None:
    return CheckpointId.parse(key.removeprefix(STEPS).partition("/")[0])
