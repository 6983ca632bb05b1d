"""DCP's ``StorageReader`` over a keepstep store: ranges only, every block verified."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from keepstep import failpoints
from keepstep.checkpoint.frames import dtype_from_name, tensor_memory
from keepstep.commit.blocks import FileBlocks
from keepstep.commit.index import Frame, RankIndex
from keepstep.commit.manifest import Manifest
from keepstep.commit.verify import read_index
from keepstep.errors import CorruptCheckpointError, InternalError
from keepstep.storage.base import Storage


class Snapshot:
    """A checkpoint's manifest and all its indexes, checked: what is in it and where."""

    def __init__(self, manifest: Manifest, indexes: tuple[RankIndex, ...]) -> None:
        self.manifest = manifest
        self.indexes = indexes

    @classmethod
    def open(cls, storage: Storage, manifest: Manifest) -> "Snapshot":
        """*Raises:* ``CorruptCheckpointError``, ``ObjectNotFound`` naming the damaged index."""
        ranks = range(manifest.world_size)
        return cls(manifest, tuple(read_index(storage, manifest, rank) for rank in ranks))

    @cached_property
    def frames(self) -> list[Frame]:
        return [frame for index in self.indexes for frame in index.frames]

    @cached_property
    def files(self) -> dict[str, FileBlocks]:
        return {blocks.file: blocks for index in self.indexes for blocks in index.files}

    @cached_property
    def metadata(self) -> Metadata:
        """As DCP wants it. Built from the indexes: the pickle beside them is never read."""
        entries: dict[str, Any] = {}
        places: dict[MetadataIndex, Frame] = {}
        for frame in self.frames:
            if frame.kind == "value":
                entries[frame.fqn] = BytesStorageMetadata()
                places[MetadataIndex(frame.fqn)] = frame
            else:
                entry = entries.setdefault(frame.fqn, _tensor_entry(frame))
                chunk = ChunkStorageMetadata(torch.Size(frame.offsets), torch.Size(frame.shape))
                entry.chunks.append(chunk)
                places[MetadataIndex(frame.fqn, frame.offsets)] = frame
        paths = {frame.fqn: frame.path for frame in self.frames}
        return Metadata(entries, planner_data=paths, storage_data=places)


class ShardReader(StorageReader):
    """Reads from one checkpoint. *Ranks:* local: every rank reads what it needs."""

    def __init__(self, storage: Storage, snapshot: Snapshot) -> None:
        self._storage = storage
        self._snapshot = snapshot
        self._places: Mapping[MetadataIndex, Frame] = {}
        self.bytes_read = 0
        """From the store, so far."""
        self.verified: dict[str, set[int]] = {}
        """Blocks that were read and found good, by file."""

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._snapshot.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        self._places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks for, in file order, straight into the destination tensors.

        *Raises:* ``CorruptCheckpointError`` naming file and block; the destinations are then partly
        overwritten and must be loaded again from elsewhere.
        """
        items = sorted(plan.items, key=self._order)
        files: dict[str, _VerifiedFile] = {}
        num_tensors = sum(item.type is LoadItemType.TENSOR for item in items)
        for number, item in enumerate(items):
            if num_tensors and number == len(items) // 2:
                failpoints.hit("load.middle", step=self._snapshot.manifest.step)
            frame = self._places[item.storage_index]
            if frame.file not in files:
                files[frame.file] = self._open(frame.file)
            if item.type is LoadItemType.BYTE_IO:
                _read_value(item, frame, files[frame.file], planner)
            else:
                _read_chunk(item, frame, files[frame.file], planner)
        for name, opened in files.items():
            self.bytes_read += opened.bytes_read
            self.verified.setdefault(name, set()).update(opened.verified)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """DCP asks this of readers it chooses itself; this one is always given."""
        return False

    def _order(self, item: ReadItem) -> tuple[str, int]:
        frame = self._places[item.storage_index]
        return frame.file, frame.offset

    def _open(self, file: str) -> "_VerifiedFile":
        key = self._snapshot.manifest.id.key(file)
        return _VerifiedFile(self._storage, key, self._snapshot.files[file])


class _VerifiedFile:
    """Byte ranges of one shard file, each block checked as it is read."""

    def __init__(self, storage: Storage, key: str, blocks: FileBlocks) -> None:
        self._storage = storage
        self._key = key
        self._blocks = blocks
        self._edge = bytearray(blocks.block_bytes)
        self._edge_number = -1
        self.bytes_read = 0
        self.verified: set[int] = set()
        self._check_size(storage.size(key))

    def read_into(self, offset: int, destination: memoryview) -> None:
        """Fill ``destination``.

        Blocks wholly inside it are read in place, those at its edges by copy.
        """
        while destination:
            number, within = divmod(offset, self._blocks.block_bytes)
            size = self._blocks.block_size(number)
            if within == 0 and len(destination) >= size:
                self._read_block(number, destination[:size])
                count = size
            else:
                count = min(size - within, len(destination))
                destination[:count] = self._edge_block(number, size)[within : within + count]
            offset, destination = offset + count, destination[count:]

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes == self._blocks.size_bytes:
            return
        block = min(size_bytes, self._blocks.size_bytes) // self._blocks.block_bytes
        raise CorruptCheckpointError(
            f"{self._key} block {block}: the file has {size_bytes} bytes instead of "
            f"{self._blocks.size_bytes}",
            key=self._key,
            block=block,
        )

    def _edge_block(self, number: int, size: int) -> memoryview:
        """A block of which only a part is wanted.

        Neighbors in the file often share it: it is kept.
        """
        view = memoryview(self._edge)[:size]
        if self._edge_number != number:
            self._edge_number = -1
            self._read_block(number, view)
            self._edge_number = number
        return view

    def _read_block(self, number: int, destination: memoryview) -> None:
        for _ in range(2):  # a bad transfer passes, a bad copy stays
            start = number * self._blocks.block_bytes
            count = self._storage.read_into(self._key, start, destination)
            self.bytes_read += count
            if self._blocks.block_is_good(number, destination[:count]):
                self.verified.add(number)
                return
        what = "checksum mismatch" if count == len(destination) else "cut short"
        raise CorruptCheckpointError(
            f"{self._key} block {number}: {what}", key=self._key, block=number
        )


def _tensor_entry(frame: Frame) -> TensorStorageMetadata:
    properties = TensorProperties(dtype=dtype_from_name(frame.dtype or ""))
    return TensorStorageMetadata(properties, torch.Size(frame.global_shape), [])


def _read_value(item: ReadItem, frame: Frame, file: _VerifiedFile, planner: LoadPlanner) -> None:
    data = bytearray(frame.data_bytes)
    file.read_into(frame.data_offset, memoryview(data))
    planner.load_bytes(item, io.BytesIO(data))


def _read_chunk(item: ReadItem, frame: Frame, file: _VerifiedFile, planner: LoadPlanner) -> None:
    target = planner.resolve_tensor(item).detach()
    dtype = dtype_from_name(frame.dtype or "")
    if tuple(target.shape) != tuple(item.lengths):
        raise InternalError(f"{frame.fqn}: the plan asks for {item.lengths} into {target.shape}")
    if target.numel() == 0:
        return
    rows = _rows(frame.shape, item.storage_offsets, item.lengths)
    is_in_place = (
        rows.is_whole
        and target.device.type == "cpu"
        and target.is_contiguous()
        and target.dtype == dtype
    )
    if is_in_place:
        file.read_into(frame.data_offset + rows.start * dtype.itemsize, tensor_memory(target))
    else:
        # The covering rows, then the part of them that is wanted, to wherever it belongs.
        loaded = torch.empty((rows.count, *frame.shape[1:]) if frame.shape else (), dtype=dtype)
        file.read_into(frame.data_offset + rows.start * dtype.itemsize, tensor_memory(loaded))
        for dimension in range(1, loaded.dim()):
            loaded = loaded.narrow(
                dimension, item.storage_offsets[dimension], item.lengths[dimension]
            )
        target.copy_(loaded)
    planner.commit_tensor(item, target)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a chunk that cover a region of it; consecutive in the file."""

    start: int
    """Elements before the first row."""
    count: int
    is_whole: bool
    """Whether the region is these rows and nothing less."""


def _rows(shape: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]) -> _Rows:
    if not shape:
        return _Rows(0, 1, is_whole=True)
    inner = 1
    for size in shape[1:]:
        inner *= size
    is_whole = tuple(lengths[1:]) == tuple(shape[1:])
    return _Rows(offsets[0] * inner, lengths[0], is_whole)
