"""A rank that saves a few bytes: enough to run the protocol's own code without tensors."""

from collections.abc import Callable
from functools import cached_property

from keepstep.commit.blocks import FileBlocks, fold_checksums, run_checksums, sha256_digest
from keepstep.commit.index import RankIndex
from keepstep.commit.layout import METADATA, CheckpointId, index_filename, shard_filename
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.errors import InternalError
from keepstep.storage.base import Storage

_BLOCK_BYTES = 32
METADATA_CONTENT = b"stock metadata"
_METADATA_RECORD = ObjectRecord(METADATA, len(METADATA_CONTENT), sha256_digest(METADATA_CONTENT))


class SimulatedParticipant:
    """Keeps the contract of :class:`~keepstep.commit.protocol.Participant`.

    Args:
        state: What the training of this rank has come to.
    """

    def __init__(
        self,
        storage: Storage,
        attempt: CheckpointId,
        *,
        rank: int,
        world_size: int,
        state: bytes,
        describe: Callable[[tuple[ObjectRecord, ...]], Manifest],
    ) -> None:
        self.storage = storage
        self.attempt = attempt
        self.rank = rank
        self.world_size = world_size
        self.state = state
        self._describe = describe
        self.written: list[str] = []

    def local_plan(self, *, is_whole: bool) -> bytes:
        return b"%d %d" % (self.rank, is_whole)

    def global_plan(self, local_plans: list[bytes]) -> list[bytes] | None:
        """The first save of a generation exchanges whole plans, as a real one does."""
        is_whole = local_plans[0].endswith(b"1")
        return local_plans if is_whole or self.attempt.attempt[:4] != "0001" else None

    def stage(self, plan: bytes, alive: Callable[[], None]) -> None:
        if int(plan.split()[0]) != self.rank:
            raise InternalError("a rank was given another's plan", rank=self.rank)
        alive()

    def write(self, alive: Callable[[], None]) -> bytes:
        file, data = shard_filename(self.rank, 0), self.state
        key, half = self.attempt.key(file), len(data) // 2
        self.written.append(key)
        with self.storage.open_writer(key, len(data)) as writer:
            writer.write(0, data[:half])
            alive()
            writer.write(half, data[half:])
        index = self.index()
        self.written.append(self.attempt.key(index_filename(self.rank)))
        self.storage.put(self.written[-1], index)
        return self.record(index)

    def is_vouched_for(self, *, within_seconds: float) -> bool:  # noqa: ARG002  # staged at once
        return True

    def index(self) -> bytes:
        """What the index of this rank holds."""
        return RankIndex(rank=self.rank, frames=(), files=(self._blocks,)).to_bytes()

    def record(self, index: bytes) -> bytes:
        """What the coordinator is told."""
        digest = self._blocks.digest
        return f"{digest} {len(self.state)} {sha256_digest(index)} {len(index)}".encode()

    def manifest(self, records: list[bytes]) -> Manifest:
        self.written.append(self.attempt.key(METADATA))
        self.storage.put(self.written[-1], METADATA_CONTENT)
        objects = [_METADATA_RECORD]
        for rank, record in enumerate(records):
            shard_digest, shard_bytes, index_digest, index_bytes = record.decode().split()
            objects.append(ObjectRecord(shard_filename(rank, 0), int(shard_bytes), shard_digest))
            objects.append(ObjectRecord(index_filename(rank), int(index_bytes), index_digest))
        return self._describe(tuple(objects))

    def discard(self) -> None:
        self.storage.delete(self.written)

    @cached_property
    def _blocks(self) -> FileBlocks:
        file = shard_filename(self.rank, 0)
        return fold_checksums(file, [run_checksums(0, self.state, _BLOCK_BYTES)], _BLOCK_BYTES)
