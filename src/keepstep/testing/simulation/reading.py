"""What a start reads of a checkpoint: every byte of it, compared with what vouches for it."""

from collections.abc import Iterable

from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import CheckpointId, shard_filename
from keepstep.commit.manifest import Manifest
from keepstep.commit.verified import open_verified
from keepstep.commit.verify import Damage, check_metadata, read_index
from keepstep.errors import CorruptCheckpointError
from keepstep.storage.base import Storage


def read_states(storage: Storage, checkpoint: CheckpointId) -> list[bytes]:
    """The state of each rank.

    *Raises:* ``CorruptCheckpointError``, ``ObjectNotFound``.
    """
    manifest = Catalog(storage).manifest(checkpoint)
    _raise_first(check_metadata(storage, manifest))
    return [_read_state(storage, manifest, rank) for rank in range(manifest.world_size)]


def _read_state(storage: Storage, manifest: Manifest, rank: int) -> bytes:
    (blocks,) = read_index(storage, manifest, rank).files
    if blocks.file != shard_filename(rank, 0):
        raise CorruptCheckpointError(f"rank {rank} vouches for {blocks.file}", key=blocks.file)
    content = bytearray(blocks.size_bytes)
    with open_verified(storage, manifest, blocks) as file:
        file.check_size()
        file.read(range(len(blocks.blocks)), memoryview(content))
    return bytes(content)


def _raise_first(damages: Iterable[Damage]) -> None:
    for damage in damages:
        raise CorruptCheckpointError(str(damage), key=damage.key, block=damage.block)
