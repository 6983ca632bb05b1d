"""A rank that saves bytes instead of tensors: enough to run the real protocol without torch."""

from collections.abc import Callable
from dataclasses import dataclass, field

from keepstep.commit.blocks import fold_checksums, run_checksums, sha256_digest
from keepstep.commit.index import Frame, RankIndex
from keepstep.commit.layout import METADATA, CheckpointId, index_filename, shard_filename
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.storage.base import Storage


@dataclass
class BytesParticipant:
    """Writes one object and its index; ``interfere`` is called at the start of each method."""

    storage: Storage
    attempt: CheckpointId
    rank: int
    world_size: int
    data: bytes
    interfere: Callable[[str], None] = lambda _: None
    written: list[str] = field(default_factory=list)
    alive: Callable[[], None] = lambda: None
    vouches: Callable[[], bool] = lambda: True

    def local_plan(self, *, is_whole: bool) -> bytes:
        self.interfere("local_plan")
        return b"%d" % self.rank

    def global_plan(self, local_plans: list[bytes]) -> list[bytes]:
        self.interfere("global_plan")
        assert local_plans == [b"%d" % rank for rank in range(self.world_size)]
        return local_plans

    def stage(self, plan: bytes, alive: Callable[[], None]) -> None:
        self.interfere("stage")
        assert plan == b"%d" % self.rank

    def write(self, alive: Callable[[], None]) -> bytes:
        self.alive = alive
        self.interfere("write")
        file = shard_filename(self.rank, 0)
        blocks = fold_checksums(file, [run_checksums(0, self.data, 16)], 16)
        frame = Frame(
            fqn=f"part.{self.rank}",
            path=("part", str(self.rank)),
            kind="value",
            file=file,
            offset=0,
            length=len(self.data),
            data_offset=0,
            data_bytes=len(self.data),
            digest=blocks.digest,
        )
        index = RankIndex(rank=self.rank, frames=(frame,), files=(blocks,)).to_bytes()
        self._put(file, self.data)
        self._put(index_filename(self.rank), index)
        return f"{blocks.digest} {len(self.data)} {sha256_digest(index)} {len(index)}".encode()

    def is_vouched_for(self, *, within_seconds: float) -> bool:
        self.interfere("is_vouched_for")
        return self.vouches()

    def manifest(self, records: list[bytes]) -> Manifest:
        self.interfere("manifest")
        self._put(METADATA, b"pickle")
        objects = [ObjectRecord(METADATA, 6, sha256_digest(b"pickle"))]
        for rank, record in enumerate(records):
            shard_digest, shard_bytes, index_digest, index_bytes = record.decode().split()
            objects.append(ObjectRecord(shard_filename(rank, 0), int(shard_bytes), shard_digest))
            objects.append(ObjectRecord(index_filename(rank), int(index_bytes), index_digest))
        return Manifest(
            run="run",
            step=self.attempt.step,
            generation=self.attempt.generation,
            attempt=self.attempt.attempt,
            created="2026-01-01T00:00:00+00:00",
            keepstep_version="0",
            torch_version="0",
            world_size=self.world_size,
            objects=tuple(objects),
            progress={"samples": self.attempt.step, "tokens": 0},
        )

    def discard(self) -> None:
        self.interfere("discard")
        self.storage.delete(self.written)

    def _put(self, file: str, data: bytes) -> None:
        self.storage.put(self.attempt.key(file), data)
        self.written.append(self.attempt.key(file))
