"""DCP's ``StorageWriter`` over a keepstep store."""

import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from keepstep import failpoints
from keepstep.checkpoint.digest import chunk_digest, format_digest
from keepstep.checkpoint.frames import dtype_name, tensor_frame, tensor_memory
from keepstep.commit.blocks import BlockHasher, FileBlocks, sha256_digest
from keepstep.commit.index import Frame, RankIndex
from keepstep.commit.layout import METADATA, CheckpointId, index_filename, shard_filename
from keepstep.commit.manifest import ObjectRecord
from keepstep.errors import InternalError
from keepstep.storage.base import Buffer, ObjectWriter, Storage

_DCP_VERSION = "1.0.0"
"""Of stock DCP's file system format, which ``.metadata`` and the frames keep to."""

_PIECE_BYTES = 8 << 20
"""Hashed while it is warm, then written."""


class ShardWriter(StorageWriter):
    """Writes one attempt: each rank one shard file and its index, the coordinator ``.metadata``.

    Works under keepstep's protocol and, as any DCP writer, under
    ``torch.distributed.checkpoint.save``. One object per rank and attempt.
    """

    def __init__(self, storage: Storage, attempt: CheckpointId) -> None:
        self._storage = storage
        self.alive: Callable[[], None] = lambda: None
        """Called now and then while writing."""
        self._attempt = attempt
        self._written: list[str] = []
        self._index_record: ObjectRecord | None = None
        self.index: RankIndex | None = None
        """What this rank wrote, once it has."""

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tell every rank its number. *Ranks:* coordinator."""
        return [replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Stream this rank's chunks into its shard file, hashing on the way.

        *Ranks:* local. *Durability:* shard and index are durable once this returns.
        """
        rank = cast("int", plan.storage_data)
        shard = _Shard(shard_filename(rank, 0), self.alive)
        with self._open(shard.file) as writer:
            shard.writer = writer
            middle = len(plan.items) // 2
            for number, item in enumerate(plan.items):
                if number == middle:
                    writer.flush()
                    failpoints.hit("write.middle", step=self._attempt.step)
                shard.add(item, planner)
        frames = [replace(frame, path=_path(plan, frame.fqn)) for frame in shard.frames]
        self.index = RankIndex(rank=rank, frames=tuple(frames), files=(shard.finish(),))
        self._written.append(self._attempt.key(index_filename(rank)))
        data = self.index.to_bytes()
        self._storage.put(self._written[-1], data)
        self._index_record = ObjectRecord(index_filename(rank), len(data), sha256_digest(data))
        future: Future[list[WriteResult]] = Future()
        future.set_result(shard.results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> ObjectRecord:  # type: ignore[override]  # DCP ignores what is returned
        """Write stock DCP's metadata; returns what the manifest is to say of it.

        *Ranks:* coordinator. *Durability:* durable once this returns.
        """
        metadata.version = _DCP_VERSION
        metadata.storage_data = {
            result.index: result.storage_data for rank_results in results for result in rank_results
        }
        metadata.storage_meta = self.storage_meta()
        data = pickle.dumps(metadata)
        self._written.append(self._attempt.key(METADATA))
        self._storage.put(self._written[-1], data)
        return ObjectRecord(METADATA, len(data), sha256_digest(data))

    def discard(self) -> None:
        """Remove what this writer wrote. *Ranks:* local."""
        self._storage.delete(self._written)

    def records(self) -> list[ObjectRecord]:
        """What the manifest is to say of this rank's objects."""
        if self.index is None or self._index_record is None:
            raise InternalError("nothing was written yet")
        files = (ObjectRecord(file.file, file.size_bytes, file.digest) for file in self.index.files)
        return [*files, self._index_record]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """DCP asks this of writers it chooses itself; this one is always given."""
        return False

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self._attempt.attempt)

    @contextmanager
    def _open(self, file: str) -> Iterator[ObjectWriter]:
        key = self._attempt.key(file)
        with self._storage.open_writer(key) as writer:
            yield writer
        self._written.append(key)


@dataclass(slots=True)
class _Shard:
    """One shard file in the making."""

    file: str
    alive: Callable[[], None]
    writer: ObjectWriter | None = None
    hasher: BlockHasher = field(default_factory=BlockHasher)
    frames: list[Frame] = field(default_factory=list)
    results: list[WriteResult] = field(default_factory=list)

    def add(self, item: WriteItem, planner: SavePlanner) -> None:
        offset = self.hasher.size_bytes
        data = planner.resolve_data(item)
        data = data.wait() if isinstance(data, Future) else data
        if item.type is WriteItemType.BYTE_IO:
            frame = self._add_value(item, cast("io.BytesIO", data).getbuffer(), offset)
        else:
            frame = self._add_chunk(item, cast("torch.Tensor", data), offset)
        self.frames.append(frame)
        place = _StorageInfo(self.file, offset, frame.length)
        self.results.append(WriteResult(item.index, frame.data_bytes, place))

    def finish(self) -> FileBlocks:
        return self.hasher.finish(self.file)

    def _add_value(self, item: WriteItem, data: memoryview, offset: int) -> Frame:
        self._write(data)
        hasher = BlockHasher()
        hasher.update(data)
        return Frame(
            fqn=item.index.fqn,
            path=(),
            kind="value",
            file=self.file,
            offset=offset,
            length=len(data),
            data_offset=offset,
            data_bytes=len(data),
            digest=hasher.finish("").digest,
        )

    def _add_chunk(self, item: WriteItem, chunk: torch.Tensor, offset: int) -> Frame:
        described = item.tensor_data
        if described is None:
            raise InternalError(f"the plan does not describe {item.index.fqn}")
        chunk = chunk.detach().to("cpu").contiguous()
        layout = tensor_frame(chunk.dtype, chunk.shape, offset)
        self._write(layout.prefix)
        self._write(tensor_memory(chunk))
        self._write(layout.suffix)
        fqn, offsets = item.index.fqn, tuple(described.chunk.offsets)
        digest = chunk_digest(fqn, chunk, offsets, described.size)
        return Frame(
            fqn=fqn,
            path=(),
            kind="tensor",
            file=self.file,
            offset=offset,
            length=layout.length,
            data_offset=offset + len(layout.prefix),
            data_bytes=layout.data_bytes,
            digest=format_digest(digest),
            dtype=dtype_name(chunk.dtype),
            global_shape=tuple(described.size),
            offsets=offsets,
            shape=tuple(chunk.shape),
        )

    def _write(self, data: Buffer) -> None:
        if self.writer is None:
            raise InternalError("the shard's file is not open")
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self.hasher.update(piece)
            self.writer.write(piece)
            self.alive()


def _path(plan: SavePlan, fqn: str) -> tuple[str | int, ...]:
    mappings = plan.planner_data or {}
    return tuple(mappings.get(fqn, (fqn,)))
