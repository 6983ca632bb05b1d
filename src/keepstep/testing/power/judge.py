"""Which promises the disk has broken, and whether the run can go on."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from keepstep.commit.canonical import unseal
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.layout import (
    GENERATIONS,
    LEDGER,
    MANIFEST,
    PINS,
    QUARANTINE,
    RUN_KEY,
    SKIPS,
    STEPS,
    CheckpointId,
    shard_filename,
)
from keepstep.commit.manifest import Manifest
from keepstep.commit.pins import pinned
from keepstep.commit.pruning import Pruner
from keepstep.commit.retention import Extent
from keepstep.commit.uploads import forgotten_uploads
from keepstep.commit.verify import verify_checkpoint
from keepstep.config.keep import parse_keep
from keepstep.errors import CorruptCheckpointError, KeepstepError
from keepstep.observability.ledger import read_ledger
from keepstep.storage.base import Storage
from keepstep.storage.local import LocalStorage
from keepstep.testing.power.diary import Diary
from keepstep.testing.power.job import WORLD_SIZE, BytesJob, content

_SEALED = (RUN_KEY, GENERATIONS, PINS, QUARANTINE, SKIPS)


def broken_promises(root: Path, diary: Diary) -> list[str]:
    """Everything that is not as it was promised; then start, save and clean up, to see it work.

    Looks at a store that was opened anew, as after a restart.
    """
    storage = LocalStorage(root)
    try:
        before = [
            *_torn(storage),
            *_lost_commits(storage, diary),
            *_lost_marks(storage, diary),
            *_wrong_head(storage, diary),
            *_false_records(storage, diary),
        ]
        return [*before, *_goes_on(root, diary)]
    except (KeepstepError, OSError) as error:
        return [f"recovery ended with {type(error).__name__}: {error}"]


def _torn(storage: Storage) -> Iterator[str]:
    """What was put or created whole must be whole, promised or not."""
    for info in storage.list(""):
        try:
            if info.key.startswith(_SEALED):
                unseal(storage.get(info.key), info.key)
            elif info.key.startswith(STEPS) and info.key.endswith(f"/{MANIFEST}"):
                Manifest.from_bytes(storage.get(info.key), info.key)
        except CorruptCheckpointError as error:
            yield f"torn: {error} ({info.size_bytes} bytes)"


def _lost_commits(storage: Storage, diary: Diary) -> Iterator[str]:
    entries = {entry.id: entry for entry in Catalog(storage).entries()}
    for entry in entries.values():
        if entry.has_manifest:
            yield from (f"{entry.id} counts, but {d}" for d in verify_checkpoint(storage, entry.id))
            yield from _other_bytes(storage, entry.id)
    for commit in sorted(diary.commits - diary.doomed):
        if commit not in entries or not entries[commit].has_manifest:
            yield f"{commit} was reported as committed, and is lost"
    for removed in sorted(diary.gone):
        if removed in entries and entries[removed].has_manifest:
            yield f"{removed} was reported as removed, and counts again"


def _other_bytes(storage: Storage, checkpoint: CheckpointId) -> Iterator[str]:
    for rank in range(WORLD_SIZE):
        key = checkpoint.key(shard_filename(rank, 0))
        if storage.get(key) != content(checkpoint.step, rank):
            yield f"{key} is not what was saved"


def _lost_marks(storage: Storage, diary: Diary) -> Iterator[str]:
    newest = max(Catalog(storage).generations(), default=0)
    if newest < diary.generation:
        yield f"generation {diary.generation} was claimed, and generation {newest} is the newest"
    for checkpoint in sorted(diary.pins - pinned(storage)):
        yield f"the pin of {checkpoint} is lost"
    for checkpoint in sorted(diary.unpins & pinned(storage)):
        yield f"the pin of {checkpoint} was removed, and is back"


def _wrong_head(storage: Storage, diary: Diary) -> Iterator[str]:
    latest = Catalog(storage).latest()
    if latest not in diary.possible_heads:
        yield f"a start would go on from {latest}, not from {diary.head}"


def _false_records(storage: Storage, diary: Diary) -> Iterator[str]:
    for info in storage.list(LEDGER):
        for event in read_ledger(storage.get(info.key)):
            if event.get("checkpoint") not in diary.recorded:
                yield f"{info.key} holds an event that nobody recorded: {event}"


def _goes_on(root: Path, diary: Diary) -> Iterator[str]:
    after = Diary()
    job = BytesJob(root, after, check=lambda: None)
    yield from (f"{damaged} had to be set aside" for damaged in job.damaged)
    if job.resumed_from not in diary.possible_heads:
        yield f"the start goes on from {job.resumed_from}, not from {diary.head}"
    if job.generation <= diary.generation:
        yield f"the start claims generation {job.generation} a second time"
    step = (job.resumed_from.step if job.resumed_from else 0) + 5
    yield from (f"the next save failed: {error!r}" for error in job.save(step).values())
    if Catalog(job.storage).latest() != after.head:
        yield f"the next save does not count: {Catalog(job.storage).latest()} is the newest"
    everything = Extent(superseded=True, quarantined=True)
    Pruner(job.storage).prune(parse_keep("last=1"), everything)
    now = datetime.now(UTC)
    unfinished = forgotten_uploads(job.storage.uploads(""), older_than=timedelta(0), now=now)
    for upload in unfinished:
        job.storage.abort_upload(upload)
    yield from (f"nothing refers to {path}" for path in _unreferenced(root, job.storage))


def _unreferenced(root: Path, storage: Storage) -> list[str]:
    """Files, hidden ones too, that nothing accounts for once everything is cleaned up."""
    catalog = Catalog(storage)
    known = set()
    for entry in catalog.entries():
        if entry.status is Status.COMMITTED:
            records = catalog.manifest(entry.id).objects
            known |= {entry.id.key(MANIFEST), *(entry.id.key(r.file) for r in records)}
    files = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    kept = (RUN_KEY, GENERATIONS, PINS, LEDGER)
    return sorted(file for file in files if file not in known and not file.startswith(kept))
