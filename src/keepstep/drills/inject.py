"""What befalls a run: damage to its files, signals to its ranks."""

import hashlib
import os
import random
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from keepstep.commit.blocks import BLOCK_BYTES
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import MANIFEST, METADATA, CheckpointId, index_filename, shard_filename
from keepstep.drills.scenario import DamageKind, Place, Spoil
from keepstep.errors import ConfigError
from keepstep.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Damage:
    """One deed: where, and what a report of it has to name."""

    checkpoint: CheckpointId
    place: Place
    kind: DamageKind
    key: str
    block: int | None
    """Of a shard that is still there: the first damaged one."""

    def __str__(self) -> str:
        where = self.key if self.block is None else f"{self.key} block {self.block}"
        return f"{self.kind} {where}"


def spoil(storage: Storage, act: Spoil, *, seed: str) -> list[Damage]:
    """Damage the newest checkpoints, one place each; ``seed`` decides on the rank and the byte.

    *Raises:* ``ConfigError`` if there are not so many.
    """
    candidates = Catalog(storage).candidates()[: len(act.places)]
    if len(candidates) < len(act.places):
        raise ConfigError(
            f"{storage.uri} has {len(candidates)} checkpoints to damage, and the drill wants "
            f"{len(act.places)}: choose more steps, or a smaller checkpoint.every"
        )
    return [
        _damage(storage, checkpoint, place, act.kind, random.Random(f"{seed}/{checkpoint.step}"))
        for checkpoint, place in zip(candidates, act.places, strict=True)
    ]


def fingerprints(storage: Storage) -> dict[str, str]:
    """A digest of every object."""
    return {
        info.key: hashlib.sha256(storage.get(info.key)).hexdigest() for info in storage.list("")
    }


def copy_objects(source: Storage, target: Storage) -> None:
    """All that there is."""
    for info in source.list(""):
        target.put(info.key, source.get(info.key))


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """Send a signal to processes; those that are gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _damage(
    storage: Storage,
    checkpoint: CheckpointId,
    place: Place,
    kind: DamageKind,
    chance: random.Random,
) -> Damage:
    world_size = Catalog(storage).manifest(checkpoint).world_size
    key = checkpoint.key(_filename(place, chance.randrange(world_size)))
    data = storage.get(key)
    position = chance.randrange(len(data))
    if kind is DamageKind.DELETE:
        storage.delete([key])
    else:
        storage.put(key, _damaged(data, kind, position))
    has_blocks = place is Place.SHARD and kind is not DamageKind.DELETE
    return Damage(checkpoint, place, kind, key, position // BLOCK_BYTES if has_blocks else None)


def _filename(place: Place, rank: int) -> str:
    match place:
        case Place.SHARD:
            return shard_filename(rank, 0)
        case Place.INDEX:
            return index_filename(rank)
        case Place.METADATA:
            return METADATA
        case Place.MANIFEST:
            return MANIFEST


def _damaged(data: bytes, kind: DamageKind, position: int) -> bytes:
    """``data`` with the bit, the block or the tail at ``position`` gone."""
    if kind is DamageKind.TRUNCATE:
        return data[:position]
    if kind is DamageKind.FLIP:
        return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    start = position // BLOCK_BYTES * BLOCK_BYTES
    zeros = bytes(min(BLOCK_BYTES, len(data) - start))
    return data[:start] + zeros + data[start + len(zeros) :]
