"""Reading a checkpoint back and checking every byte of it, without torch."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from keepstep.commit.blocks import FileBlocks, sha256_digest
from keepstep.commit.catalog import Catalog
from keepstep.commit.index import RankIndex
from keepstep.commit.layout import METADATA, CheckpointId, index_filename
from keepstep.commit.manifest import Manifest
from keepstep.commit.part import WHOLE, Part
from keepstep.commit.verified import READ_BYTES, calls, open_verified
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


def verify_checkpoint(
    storage: Storage, checkpoint: CheckpointId, part: Part = WHOLE
) -> list[Damage]:
    """Everything wrong with a checkpoint; empty if it is whole.

    Every byte of every object is read; of shard files, if asked for, the bytes of one part, and
    their sizes. Evidence that is missing counts as damage.
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
            damages += check_blocks(storage, manifest, blocks, part.blocks_of(blocks))
    unread = [record.file for record in manifest.objects if record.file not in vouched_for]
    damages += [Damage(checkpoint.key(file), "no readable index vouches for it") for file in unread]
    return damages


def check_presence(storage: Storage, manifest: Manifest) -> list[Damage]:
    """What is wrong with a checkpoint as far as can be said without reading its tensors.

    Every object must be listed in its full size; ``.metadata`` and all indexes are read back and
    compared with their digests. What the indexes say is not looked at: of many ranks that takes
    long, and this is done beside training.
    *Raises:* as :func:`verify_checkpoint`.
    """
    found = {info.key: info.size_bytes for info in storage.list(manifest.id.prefix)}
    damages = []
    for record in manifest.objects:
        key = manifest.id.key(record.file)
        if key not in found:
            damages.append(Damage(key, "is missing"))
        elif found[key] != record.size_bytes:
            damages.append(Damage(key, f"has {found[key]} bytes instead of {record.size_bytes}"))
    if damages:
        return damages

    def check_index(rank: int) -> list[Damage]:
        try:
            read_small(storage, manifest, index_filename(rank))
        except (CorruptCheckpointError, ObjectNotFound) as error:
            return [_damage(error)]
        return []

    with ThreadPoolExecutor(storage.capabilities.concurrency) as pool:
        of_indexes = pool.map(check_index, range(manifest.world_size))
        return [*check_metadata(storage, manifest), *chain.from_iterable(of_indexes)]


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
                    numbers = range(0) if block is None else range(block, block + 1)
                    return any(check_blocks(storage, manifest, blocks, numbers))
    except (CorruptCheckpointError, ObjectNotFound):
        return True
    return False


def read_index(storage: Storage, manifest: Manifest, rank: int) -> RankIndex:
    """What ``rank`` wrote, checked against the manifest, and its files' digests against it too.

    *Raises:* ``CorruptCheckpointError``, ``ObjectNotFound``.
    """
    return parse_index(manifest, rank, read_small(storage, manifest, index_filename(rank)))


def parse_index(manifest: Manifest, rank: int, data: bytes) -> RankIndex:
    """:func:`read_index`, of what was read already, and compared with its digest."""
    key = manifest.id.key(index_filename(rank))
    index = RankIndex.from_bytes(data, key)
    for blocks in index.files:
        record = manifest.record(blocks.file)
        if (record.size_bytes, record.digest) != (blocks.size_bytes, blocks.digest):
            raise CorruptCheckpointError(
                f"{key} and the manifest disagree about {blocks.file}", key=key
            )
    return index


def read_small(storage: Storage, manifest: Manifest, file: str) -> bytes:
    """An object that the manifest vouches for as a whole.

    *Raises:* ``CorruptCheckpointError``, ``ObjectNotFound``.
    """
    key = manifest.id.key(file)
    data = storage.get(key)
    if not is_vouched_for(manifest, file, data):
        raise CorruptCheckpointError(f"{key} does not match the digest in the manifest", key=key)
    return data


def is_vouched_for(manifest: Manifest, file: str, data: bytes) -> bool:
    """Whether these are the bytes of an object, by the manifest."""
    record = manifest.record(file)
    return len(data) == record.size_bytes and sha256_digest(data) == record.digest


def check_blocks(
    storage: Storage, manifest: Manifest, blocks: FileBlocks, numbers: range | None = None
) -> Iterator[Damage]:
    """Read blocks of a shard file, all of them by default, and say which are damaged."""
    wanted = range(len(blocks.blocks)) if numbers is None else numbers
    try:
        with open_verified(storage, manifest, blocks) as file:
            if file.wrong_size is not None:
                yield Damage(file.key, file.wrong_size)
            buffer = memoryview(bytearray(min(READ_BYTES, blocks.bytes_in(wanted))))
            for call in calls(blocks, wanted):
                outcome = file.examine(call, buffer[: blocks.bytes_in(call)])
                for block, reason in outcome.damaged.items():
                    yield Damage(file.key, reason, block)
    except ObjectNotFound:
        yield Damage(manifest.id.key(blocks.file), "is missing")


def check_metadata(storage: Storage, manifest: Manifest) -> Iterator[Damage]:
    """Compare stock DCP's metadata with its digest. It is not unpickled."""
    try:
        read_small(storage, manifest, METADATA)
    except (CorruptCheckpointError, ObjectNotFound) as error:
        yield _damage(error)


def _damage(error: CorruptCheckpointError | ObjectNotFound) -> Damage:
    key = error.key or ""
    if isinstance(error, ObjectNotFound):
        return Damage(key, "is missing")
    return Damage(key, error.args[0].removeprefix(key).strip(), error.block)
