"""DCP's ``StorageReader`` over a keepstep store: ranges only, every block verified."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from keepstep import failpoints
from keepstep.checkpoint.collector import collector_paused
from keepstep.checkpoint.frames import dtype_from_name
from keepstep.checkpoint.parallel import for_each
from keepstep.checkpoint.pieces import Buffers
from keepstep.checkpoint.reads import Reads
from keepstep.checkpoint.stretches import FilePieces, Stretch
from keepstep.commit.blocks import FileBlocks
from keepstep.commit.index import Frame, RankIndex
from keepstep.commit.layout import index_filename
from keepstep.commit.manifest import Manifest
from keepstep.commit.verified import VerifiedFile, open_verified
from keepstep.commit.verify import parse_index, read_small
from keepstep.storage.base import Storage

_MOST_OPEN_FILES = 64


class Snapshot:
    """A checkpoint's manifest and all its indexes, checked: what is in it and where."""

    def __init__(self, manifest: Manifest, indexes: tuple[RankIndex, ...]) -> None:
        self.manifest = manifest
        self.indexes = indexes

    @classmethod
    def open(cls, storage: Storage, manifest: Manifest) -> "Snapshot":
        """*Raises:* ``CorruptCheckpointError``, ``ObjectNotFound`` naming the damaged index."""
        return cls.parse(manifest, read_indexes(storage, manifest, range(manifest.world_size)))

    @classmethod
    def parse(cls, manifest: Manifest, indexes: Mapping[int, bytes]) -> "Snapshot":
        """Of the indexes of all ranks, as :func:`read_indexes` gives them.

        *Raises:* ``CorruptCheckpointError`` naming the damaged index.
        """
        with collector_paused():
            ranks = range(manifest.world_size)
            return cls(
                manifest, tuple(parse_index(manifest, rank, indexes[rank]) for rank in ranks)
            )

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
                entry = entries.get(frame.fqn)
                if entry is None:
                    entry = entries[frame.fqn] = _tensor_entry(frame)
                chunk = ChunkStorageMetadata(torch.Size(frame.offsets), torch.Size(frame.shape))
                entry.chunks.append(chunk)
                places[MetadataIndex(frame.fqn, frame.offsets)] = frame
        paths = {frame.fqn: frame.path for frame in self.frames}
        return Metadata(entries, planner_data=paths, storage_data=places)


def read_indexes(storage: Storage, manifest: Manifest, ranks: Sequence[int]) -> dict[int, bytes]:
    """The indexes of these ranks, compared with the manifest, and not parsed yet.

    *Raises:* ``CorruptCheckpointError``, ``ObjectNotFound`` naming the damaged index.
    """
    found: dict[int, bytes] = {}

    def read(rank: int) -> None:
        found[rank] = read_small(storage, manifest, index_filename(rank))

    for_each(ranks, read, num_threads=storage.capabilities.concurrency)
    return found


class ShardReader(StorageReader):
    """Reads from one checkpoint. *Ranks:* local: every rank reads what it needs."""

    def __init__(self, storage: Storage, snapshot: Snapshot) -> None:
        self._storage = storage
        self._snapshot = snapshot
        self._places: Mapping[MetadataIndex, Frame] = {}
        self._lock = threading.Lock()
        self.bytes_read = 0
        """From the store, so far."""
        self.verified: dict[str, list[range]] = {}
        """Blocks that were read and found good, by file."""

    @property
    def num_threads(self) -> int:
        """Reads at a time."""
        return self._storage.capabilities.concurrency

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
        """Read what the plan asks for, in file order, into the destination tensors.

        *Raises:* ``CorruptCheckpointError`` naming file and block; the destinations are then partly
        overwritten and must be loaded again from elsewhere.
        """
        reads = self.reads(plan, planner)
        self.read(reads.needed, reads)
        reads.finish()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @property
    def files(self) -> Mapping[str, FileBlocks]:
        """The block checksums of every shard file."""
        return self._snapshot.files

    def reads(self, plan: LoadPlan, planner: LoadPlanner) -> Reads:
        """What a plan asks for."""
        in_place_bytes = self._storage.capabilities.request_bytes
        return Reads(
            plan, planner, self._places, self._snapshot.files, in_place_bytes=in_place_bytes
        )

    def read(self, wanted: Mapping[str, Sequence[range]], reads: Reads) -> None:
        """Read blocks, in merged ranges by file, to where they are needed."""
        stretches = {file: reads.files[file].stretches(blocks) for file, blocks in wanted.items()}
        tasks = [stretch for found in stretches.values() for stretch in found]
        middle = tasks[len(tasks) // 2] if tasks and reads.has_tensors else None

        def read_one(task: tuple[VerifiedFile, Stretch]) -> None:
            opened, stretch = task
            if stretch is middle:
                self.pass_middle()
            bytes_read = _read(opened, reads.files[opened.blocks.file], stretch, reads.buffers)
            self.note(opened.blocks.file, stretch.numbers, bytes_read)

        names = [file for file, found in stretches.items() if found]
        for begin in range(0, len(names), _MOST_OPEN_FILES):
            files = names[begin : begin + _MOST_OPEN_FILES]
            with ExitStack() as stack:
                opened = {file: stack.enter_context(self.open(file)) for file in files}
                several = [(opened[file], stretch) for file in files for stretch in stretches[file]]
                for_each(several, read_one, num_threads=self.num_threads)

    @contextmanager
    def open(self, file: str) -> Iterator[VerifiedFile]:
        """A shard file, of the right size. *Raises:* ``CorruptCheckpointError``."""
        snapshot = self._snapshot
        with open_verified(self._storage, snapshot.manifest, snapshot.files[file]) as opened:
            opened.check_size()
            yield opened

    def note(self, file: str, numbers: range, bytes_read: int) -> None:
        """Count what was read and found good."""
        with self._lock:
            self.bytes_read += bytes_read
            self.verified.setdefault(file, []).append(numbers)

    def pass_middle(self) -> None:
        """Pass the crash site in the middle of a load."""
        failpoints.hit("load.middle", step=self._snapshot.manifest.step)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """DCP asks this of readers it chooses itself; this one is always given."""
        return False


def _read(opened: VerifiedFile, pieces: FilePieces, stretch: Stretch, buffers: Buffers) -> int:
    """Read a stretch, in place or through a buffer; returns bytes read from the store."""
    count = opened.blocks.bytes_in(stretch.numbers)
    piece = stretch.piece
    if piece is not None:
        start = stretch.numbers.start * opened.blocks.block_bytes
        place = piece.place(start, start + count)
        bytes_read = opened.read(stretch.numbers, place)
        piece.arrived(count)
        return bytes_read
    buffer = buffers.take(count)
    try:
        bytes_read = opened.read(stretch.numbers, buffer[:count])
        pieces.take(stretch.numbers, buffer[:count])
    finally:
        buffers.give(buffer)
    return bytes_read


def _tensor_entry(frame: Frame) -> TensorStorageMetadata:
    properties = TensorProperties(dtype=dtype_from_name(frame.dtype or ""))
    return TensorStorageMetadata(properties, torch.Size(frame.global_shape), [])
