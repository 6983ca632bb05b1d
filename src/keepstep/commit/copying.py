"""Copying committed checkpoints to another store, where they are a run as well.

Data goes first and the manifest last, so that a copy too is there whole or not at all. Before the
first manifest the run's record and its claims are there, so that the checkpoint counts from the
moment it exists: claims of generations are the same bytes in both places, and the line they make
decides in both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.copying_objects import ObjectCopier
from keepstep.commit.layout import MANIFEST, RUN_KEY, CheckpointId, generation_key
from keepstep.commit.lineage import (
    Generation,
    claims_on_line,
    list_generations,
    read_generation,
    valid_line,
)
from keepstep.commit.manifest import Manifest
from keepstep.errors import ConfigError, NoCheckpointError, ObjectExists
from keepstep.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Copied:
    """What came of copying one checkpoint."""

    manifest: Manifest
    was_committed: bool
    """It was there before: nothing was read or sent."""
    sent_bytes: int = 0
    kept_bytes: int = 0
    """Of objects that an earlier copy had brought; they were read back and compared."""


def check_fits(source: Storage, destination: Storage, checkpoints: Sequence[CheckpointId]) -> None:
    """See that the checkpoints of one store would count in the other. Nothing is written.

    *Raises:* ``ConfigError`` if the destination is another run's, has gone its own way since it was
    copied, or has set one of the checkpoints aside; ``StorageError``.
    """
    if source.uri == destination.uri:
        raise ConfigError(f"{source.uri} is both source and destination; name two stores")
    _check_same_run(source, destination)
    theirs = {
        number: read_generation(destination, number) for number in list_generations(destination)
    }
    claims = claims_on_line(source)
    _check_same_history(source, destination, claims, theirs)
    line = valid_line({**claims, **theirs})
    for checkpoint in checkpoints:
        last_step = line.get(checkpoint.generation, -1)
        if last_step is not None and checkpoint.step > last_step:
            raise ConfigError(
                f"{checkpoint} would not count in {destination.uri}: generation {max(theirs)} "
                "there went on from an earlier step; copy to a new place"
            )
    _check_not_aside(destination, checkpoints)


def copy_run(source: Storage, destination: Storage) -> None:
    """Bring the claims that the newest one leads back to, and then the run's record.

    *Durability:* both are durable once this returns. *Raises:* ``ConfigError`` if somebody has
    started another run or generation there meanwhile.
    """
    for number in sorted(claims_on_line(source)):
        key = generation_key(number)
        _create_same(destination, key, source.get(key))
    _create_same(destination, RUN_KEY, source.get(RUN_KEY))


def copy_checkpoint(
    source: Storage,
    destination: Storage,
    checkpoint: CheckpointId,
    progress: Callable[[int], None] = lambda _: None,
) -> Copied:
    """Copy one checkpoint, checking every block on the way, and commit it.

    What an earlier copy left is used, once it was read back and found right.

    Args:
        progress: Told of bytes that are there, as they come; called from several threads.

    *Durability:* the copy is committed once this returns.
    *Raises:* ``CorruptCheckpointError`` naming object and block if the source is damaged: nothing
    is committed then; ``NoCheckpointError`` if the copy does not count because a job has started
    there meanwhile; ``StorageError``.
    """
    key = checkpoint.key(MANIFEST)
    manifest = Catalog(source).manifest(checkpoint)
    if any(info.key == key for info in destination.list(checkpoint.prefix)):
        Catalog(destination).manifest(checkpoint)
        return Copied(manifest, was_committed=True)
    copier = ObjectCopier(source, destination, manifest, progress)
    copier.copy()
    copy_run(source, destination)
    _create_same(destination, key, source.get(key))
    _check_counts(destination, checkpoint)
    return Copied(
        manifest,
        was_committed=False,
        sent_bytes=copier.sent_bytes,
        kept_bytes=copier.kept_bytes,
    )


def _check_same_run(source: Storage, destination: Storage) -> None:
    run = Catalog(source).run()["run"]
    try:
        other = Catalog(destination).run()["run"]
    except NoCheckpointError:
        return
    if run != other:
        raise ConfigError(
            f"{destination.uri} holds another run ({other}) than {source.uri} ({run}); "
            "copy to a place without a run"
        )


def _check_same_history(
    source: Storage,
    destination: Storage,
    claims: dict[int, Generation],
    theirs: dict[int, Generation],
) -> None:
    """Generations there are ours, or newer than all of ours."""
    ours = set(list_generations(source))
    for number, their in theirs.items():
        if number in ours:
            is_known = (claims.get(number) or read_generation(source, number)) == their
        else:
            is_known = number > max(ours, default=0)
        if not is_known:
            raise ConfigError(
                f"generation {number} in {destination.uri} is not that of {source.uri}: jobs have "
                "gone on in both since they were copied; copy to a new place",
                generation=number,
            )


def _check_not_aside(destination: Storage, checkpoints: Sequence[CheckpointId]) -> None:
    for entry in Catalog(destination).entries():
        if entry.status is Status.PRUNED and entry.id in checkpoints:
            raise ConfigError(
                f"{destination.uri} is removing {entry.id}: `keepstep prune` there ends it"
            )
        if entry.status is Status.QUARANTINED and entry.id in checkpoints:
            raise ConfigError(
                f"{destination.uri} has set {entry.id} aside: {entry.reason}; delete it there, "
                "with its mark below quarantine/, or copy to a new place"
            )


def _check_counts(destination: Storage, checkpoint: CheckpointId) -> None:
    if checkpoint not in Catalog(destination).candidates():
        raise NoCheckpointError(
            f"{checkpoint} was copied but does not count: a job has started in {destination.uri} "
            "meanwhile"
        )


def _create_same(destination: Storage, key: str, data: bytes) -> None:
    try:
        destination.create(key, data)
    except ObjectExists:
        if destination.get(key) != data:
            raise ConfigError(
                f"{destination.uri} holds another {key}: a job has started there meanwhile; copy "
                "to a new place",
                key=key,
            ) from None
