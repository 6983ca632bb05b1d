"""A run directory, filled as a job would fill it, without tensors."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from keepstep.commit.blocks import fold_checksums, run_checksums, sha256_digest
from keepstep.commit.catalog import Catalog
from keepstep.commit.index import Frame, RankIndex
from keepstep.commit.layout import (
    METADATA,
    CheckpointId,
    index_filename,
    new_attempt,
    shard_filename,
)
from keepstep.commit.lineage import claim_generation
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.commit.protocol import publish
from keepstep.config import Config
from keepstep.storage.local import LocalStorage

BLOCK_BYTES = 64
SHARD_BYTES = 160
OBJECTS_PER_RANK = 2


class RunOnDisk:
    """Ranks write shards of bytes; the protocol's own code commits them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)
        self.storage = LocalStorage(root)
        self.catalog = Catalog(self.storage)
        self.run_id = self.catalog.open_run()
        self.generation = 0
        self.newest: CheckpointId | None = None

    def start(self, *, resumed_from: CheckpointId | None = None) -> None:
        """Claim the next generation."""
        claim = claim_generation(
            self.storage, newest_seen=self.generation, world_size=2, resumed_from=resumed_from
        )
        self.generation, self.newest = claim.number, resumed_from

    def save(
        self, step: int, *, age: timedelta = timedelta(0), world_size: int = 2
    ) -> CheckpointId:
        """Commit a step."""
        attempt = CheckpointId(step, self.generation, new_attempt())
        records = [self._metadata(attempt)]
        for rank in range(world_size):
            records += self._shard(attempt, rank)
        manifest = Manifest(
            run=self.run_id,
            step=step,
            generation=self.generation,
            attempt=attempt.attempt,
            created=(datetime.now(UTC) - age).isoformat(timespec="milliseconds"),
            keepstep_version="0.1.0",
            torch_version="2.13.0",
            world_size=world_size,
            objects=tuple(records),
            parent=self.newest,
            parallel={"strategy": "ddp"},
            progress={"samples": step * 24, "tokens": step * 24 * 64},
            metrics={"loss": 5 - step / 100},
            tags=("final",),
            config_digest=Config().digest(),
            mathematics=Config().mathematics(),
            state_digest="00000000deadbeef",
        )
        publish(self.storage, manifest)
        self.newest = attempt
        return attempt

    def leave_unfinished(self, step: int) -> CheckpointId:
        """Write shards and no manifest."""
        attempt = CheckpointId(step, self.generation, new_attempt())
        self._shard(attempt, 0)
        return attempt

    def path(self, attempt: CheckpointId, file: str) -> Path:
        return self.root / attempt.key(file)

    def flip_byte(self, attempt: CheckpointId, file: str, offset: int) -> None:
        path = self.path(attempt, file)
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    def _metadata(self, attempt: CheckpointId) -> ObjectRecord:
        data = b"stock metadata"
        self.storage.create(attempt.key(METADATA), data)
        return ObjectRecord(METADATA, len(data), sha256_digest(data))

    def _shard(self, attempt: CheckpointId, rank: int) -> list[ObjectRecord]:
        file, data = shard_filename(rank, 0), bytes([rank]) * SHARD_BYTES
        self.storage.create(attempt.key(file), data)
        blocks = fold_checksums(file, [run_checksums(0, data, BLOCK_BYTES)], BLOCK_BYTES)
        index = RankIndex(rank=rank, frames=_frames(file, rank), files=(blocks,)).to_bytes()
        self.storage.create(attempt.key(index_filename(rank)), index)
        return [
            ObjectRecord(file, blocks.size_bytes, blocks.digest),
            ObjectRecord(index_filename(rank), len(index), sha256_digest(index)),
        ]


def _frames(file: str, rank: int) -> tuple[Frame, ...]:
    tensor = Frame(
        fqn="model.embed.weight",
        path=("model", "embed.weight"),
        kind="tensor",
        file=file,
        offset=0,
        length=100,
        data_offset=4,
        data_bytes=96,
        digest="0",
        dtype="float32",
        global_shape=(4, 12),
        offsets=(2 * rank, 0),
        shape=(2, 12),
    )
    value = Frame(
        fqn=f"rng.{rank}",
        path=("rng", rank),
        kind="value",
        file=file,
        offset=100,
        length=60,
        data_offset=100,
        data_bytes=60,
        digest="0",
    )
    return tensor, value
