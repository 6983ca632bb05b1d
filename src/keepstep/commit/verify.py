"""Reading a checkpoint back and checking every byte of it, without torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from keepstep.commit.blocks import FileBlocks, sha256_digest
from keepstep.commit.catalog import Catalog
from keepstep.commit.index import RankIndex
from keepstep.commit.layout import METADATA, CheckpointId, index_filename
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.errors import CorruptCheckpointError, KeepstepError, ObjectNotFound
from keepstep.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong."""

    key: str
    reason: str
    block: int | None = None

    def __str__(self) -> str:
        place = self.key if self.block is None else f"{self.key} block {self.block}"
        return f"{place}: {self.reason}"


def verify_checkpoint(storage: Storage, checkpoint: CheckpointId) -> list[Damage]:
    """Everything wrong with a checkpoint; empty if it is whole.

    Every byte of every object is read. Evidence that is missing counts as damage.
    *Raises:* ``StorageError`` if the store fails, ``UnsupportedFormatError`` for a newer format:
    neither says anything about the checkpoint.
    """
    try:
        manifest = Catalog(storage).manifest(checkpoint)
    except (CorruptCheckpointError, ObjectNotFound) as error:
        return [_damage(error)]
    damages = list(check_metadata(storage, manifest))
    vouched_for = {METADATA}
    for rank in range(manifest.world_size):
        vouched_for.add(index_filename(rank))
        try:
            index = read_index(storage, manifest, rank)
        except (CorruptCheckpointError, ObjectNotFound) as error:
            damages.append(_damage(error))
            continue
        for blocks in index.files:
            vouched_for.add(blocks.file)
            damages += check_blocks(storage, manifest, blocks)
    unread = [record.file for record in manifest.objects if record.file not in vouched_for]
    damages += [Damage(checkpoint.key(file), "no readable index vouches for it") for file in unread]
    return damages


def is_damaged(storage: Storage, checkpoint: CheckpointId, error: KeepstepError) -> bool:
    """Whether what another rank found damaged or missing is so from here as well.

    Looks at the one object, or block, that the error names.
    """
    file = (error.key or "").removeprefix(checkpoint.prefix)
    try:
        manifest = Catalog(storage).manifest(checkpoint)
        if file == METADATA:
            return any(check_metadata(storage, manifest))
        for rank in range(manifest.world_size):
            index = read_index(storage, manifest, rank)
            for blocks in index.files:
                if blocks.file == file:
                    block = getattr(error, "block", None)
                    numbers = [] if block is None else [block]
                    return any(check_blocks(storage, manifest, blocks, numbers))
    except (CorruptCheckpointError, ObjectNotFound):
        return True
    return False


def read_index(storage: Storage, manifest: Manifest, rank: int) -> RankIndex:
    """What ``rank`` wrote, checked against the manifest, and its files' digests against it too.

    *Raises:* ``CorruptCheckpointError``, ``ObjectNotFound``.
    """
    file = index_filename(rank)
    key = manifest.id.key(file)
    data = storage.get(key)
    _check_small(manifest.record(file), data, key)
    index = RankIndex.from_bytes(data, key)
    for blocks in index.files:
        record = manifest.record(blocks.file)
        if (record.size_bytes, record.digest) != (blocks.size_bytes, blocks.digest):
            raise CorruptCheckpointError(
                f"{key} and the manifest disagree about {blocks.file}", key=key
            )
    return index


def check_blocks(
    storage: Storage,
    manifest: Manifest,
    blocks: FileBlocks,
    numbers: Iterable[int] | None = None,
) -> Iterator[Damage]:
    """Read blocks of a shard file, all of them by default, and say which are damaged."""
    key = manifest.id.key(blocks.file)
    try:
        size_bytes = storage.size(key)
        if size_bytes != blocks.size_bytes:
            yield Damage(key, f"has {size_bytes} bytes instead of {blocks.size_bytes}")
        buffer = memoryview(bytearray(blocks.block_bytes))
        for number in range(len(blocks.blocks)) if numbers is None else numbers:
            wanted = buffer[: blocks.block_size(number)]
            count = storage.read_into(key, number * blocks.block_bytes, wanted)
            if not blocks.block_is_good(number, wanted[:count]):
                yield Damage(
                    key, "checksum mismatch" if count == len(wanted) else "cut short", number
                )
    except ObjectNotFound:
        yield Damage(key, "is missing")


def check_metadata(storage: Storage, manifest: Manifest) -> Iterator[Damage]:
    """Compare stock DCP's metadata with its digest. It is not unpickled."""
    key = manifest.id.key(METADATA)
    try:
        _check_small(manifest.record(METADATA), storage.get(key), key)
    except (CorruptCheckpointError, ObjectNotFound) as error:
        yield _damage(error)


def _check_small(record: ObjectRecord, data: bytes, key: str) -> None:
    if len(data) != record.size_bytes or sha256_digest(data) != record.digest:
        raise CorruptCheckpointError(f"{key} does not match the digest in the manifest", key=key)


def _damage(error: CorruptCheckpointError | ObjectNotFound) -> Damage:
    key = error.key or ""
    if isinstance(error, ObjectNotFound):
        return Damage(key, "is missing")
    return Damage(key, error.args[0].removeprefix(key).strip(), error.block)
