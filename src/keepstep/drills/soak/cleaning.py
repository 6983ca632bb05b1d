"""After a soak: whatever may go is removed, as a user would, and what is left is counted."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.layout import GENERATIONS, LEDGER, RUN_KEY, CheckpointId
from keepstep.commit.verify import verify_checkpoint
from keepstep.drills.run import KEEPSTEP
from keepstep.errors import ConfigError
from keepstep.storage.base import KeepsUploads, Storage

_NUM_KEPT = 3


def clean_up(storage: Storage) -> dict[str, str | None]:
    """``keepstep prune`` and ``keepstep gc``; what became of the checkpoints that they must keep.

    By name: what is wrong with it, ``None`` if it counts and is whole.
    """
    newest = Catalog(storage).candidates()[:_NUM_KEPT]
    _keepstep("prune", storage.uri, "--keep", f"last={_NUM_KEPT}", "--superseded", "--quarantined")
    _keepstep("gc", storage.uri, "--uploads", "--older-than", "1s")
    return kept(storage, newest)


def kept(storage: Storage, checkpoints: Iterable[CheckpointId]) -> dict[str, str | None]:
    """Whether they still count and are whole, by name."""
    counts = set(Catalog(storage).candidates())
    return {
        id.name: _first_damage(storage, id) if id in counts else f"{id} no longer counts"
        for id in checkpoints
    }


def left_over(storage: Storage) -> list[str]:
    """Objects that no checkpoint that counts refers to; unfinished uploads; files of no object."""
    keys = {info.key for info in storage.list("")}
    stray = {key for key in keys if key != RUN_KEY and not key.startswith((GENERATIONS, LEDGER))}
    catalog = Catalog(storage)
    for entry in catalog.entries():
        if entry.status is Status.COMMITTED:
            manifest = catalog.manifest(entry.id)
            stray -= {entry.id.key(record.file) for record in manifest.objects}
            stray.discard(entry.id.key("manifest.json"))
    uploads = storage.uploads("") if isinstance(storage, KeepsUploads) else ()
    return sorted(
        [*stray, *(f"upload of {u.key}" for u in uploads), *_strange_files(storage, keys)]
    )


def _first_damage(storage: Storage, checkpoint: CheckpointId) -> str | None:
    return next(map(str, verify_checkpoint(storage, checkpoint)), None)


def _strange_files(storage: Storage, keys: set[str]) -> list[str]:
    """Of a run in a directory: drafts, for instance, which a listing does not show."""
    root = Path(storage.uri)
    if not root.is_dir():
        return []
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return [f"file {name}" for name in sorted(files - keys)]


def _keepstep(*words: str) -> None:
    """*Raises:* ``ConfigError`` with what the command said, if it fails."""
    command = [sys.executable, "-c", KEEPSTEP, *words]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"keepstep {' '.join(words)} ended with {done.returncode}: {done.stderr}")
