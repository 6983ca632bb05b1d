"""DCP's ``StorageWriter`` over a keepstep store."""

import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures import Future as ThreadFuture
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from keepstep import failpoints
from keepstep.checkpoint.contents import PIECE_BYTES, Contents, LiveContents, Slabs
from keepstep.checkpoint.host_memory import CopyStreams
from keepstep.checkpoint.shards import (
    PAGE_BYTES,
    ShardIndex,
    ShardLayout,
    Values,
    chunk_places,
    value_places,
)
from keepstep.commit.blocks import RunChecksums, run_checksums, sha256_digest
from keepstep.commit.layout import METADATA, CheckpointId, index_filename
from keepstep.commit.manifest import ObjectRecord
from keepstep.errors import InternalError
from keepstep.storage.base import ObjectWriter, Storage

WRITER_THREADS = 4
"""Enough to keep a disk busy while others gather and hash; they hardly ever hold the GIL."""

_LIFE_SECONDS = 1.0
"""Between two looks at a write that takes long."""

_DCP_VERSION = "1.0.0"
"""Of stock DCP's file system format, which ``.metadata`` and the frames keep to."""


class ShardWriter(StorageWriter):
    """Writes one attempt: each rank one shard file and its index, the coordinator ``.metadata``.

    Works under keepstep's protocol and, as any DCP writer, under
    ``torch.distributed.checkpoint.save``. One object per rank and attempt.

    Args:
        threads: Runs the writing of pieces; threads of its own by default.
    """

    def __init__(
        self, storage: Storage, attempt: CheckpointId, *, threads: Executor | None = None
    ) -> None:
        self._storage = storage
        self._attempt = attempt
        self._threads = threads
        self._written: list[str] = []
        self._records: list[ObjectRecord] = []

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
        """Write this rank's chunks and values as stock DCP asks for it.

        *Ranks:* local. *Durability:* shard and index are durable once this returns.
        """
        rank = cast("int", plan.storage_data)
        tensors, values = split_items(plan.items)
        layout = ShardLayout(tensors)
        data = [planner.resolve_data(item).getvalue() for item in values]  # type: ignore[union-attr]
        sources = [_resolved(planner, item) for item in tensors]
        slabs = Slabs(WRITER_THREADS)
        contents = LiveContents(
            layout, sources, Values.of(values, data, layout.size_bytes), slabs, CopyStreams()
        )
        try:
            index = ShardIndex(rank, layout, plan.planner_data or {})
            self.write_shard(contents, index, alive=lambda: None)
        finally:
            slabs.close()
        places = [
            *chunk_places(tensors, index.file),
            *value_places(contents.values, layout, index.file),
        ]
        future: Future[list[WriteResult]] = Future()
        future.set_result([WriteResult(item.index, place.length, place) for item, place in places])
        return future

    def write_shard(
        self, contents: Contents, index: ShardIndex, *, alive: Callable[[], None]
    ) -> list[int]:
        """Write one shard file and the index that vouches for it.

        Returns the content digest of each slot's chunk.

        *Ranks:* local. *Durability:* both are durable once this returns.

        Args:
            alive: Called now and then while writing.
        """
        size_bytes = contents.layout.size_bytes + len(contents.values.data)
        with self._open(index.file, size_bytes) as writer:
            checksums, digests = self._write_pieces(contents, size_bytes, writer, alive)
        data, blocks = index.encoded(digests, contents.values, checksums)
        if blocks.size_bytes != size_bytes:
            raise InternalError(f"{blocks.size_bytes} of {size_bytes} bytes were hashed")
        index_record = self._put(index_filename(index.rank), data)
        self._records = [ObjectRecord(blocks.file, blocks.size_bytes, blocks.digest), index_record]
        return digests

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> ObjectRecord:  # type: ignore[override]  # DCP ignores what is returned
        """Write stock DCP's metadata; returns what the manifest is to say of it.

        *Ranks:* coordinator. *Durability:* durable once this returns.
        """
        places = {
            result.index: result.storage_data for rank_results in results for result in rank_results
        }
        return self.put_metadata(stock_metadata(metadata, places))

    def put_metadata(self, data: bytes) -> ObjectRecord:
        """Write what :func:`stock_metadata` made; returns what the manifest is to say of it.

        *Ranks:* coordinator. *Durability:* durable once this returns.
        """
        return self._put(METADATA, data)

    def discard(self) -> None:
        """Remove what this writer wrote. *Ranks:* local."""
        self._storage.delete(self._written)

    def records(self) -> list[ObjectRecord]:
        """What the manifest is to say of this rank's objects."""
        if not self._records:
            raise InternalError("nothing was written yet")
        return list(self._records)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """DCP asks this of writers it chooses itself; this one is always given."""
        return False

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self._attempt.attempt)

    def _write_pieces(
        self,
        contents: Contents,
        size_bytes: int,
        writer: ObjectWriter,
        alive: Callable[[], None],
    ) -> tuple[list[RunChecksums], list[int]]:
        """Checksums of the file's parts, and the content digest of each slot's chunk."""
        checksums: list[RunChecksums] = []
        digests = [0] * len(contents.layout.slots)
        for written in self._each(
            partial(_write_piece, contents, writer),
            _pieces(size_bytes),
            alive,
            at_middle=partial(failpoints.hit, "write.middle", step=self._attempt.step),
            on_error=writer.abandon,
        ):
            checksums += written.checksums
            for slot, digest in written.digests:
                digests[slot] ^= digest
        return checksums, digests

    def _each(
        self,
        work: Callable[[int, int], "_Written"],
        pieces: list[tuple[int, int]],
        alive: Callable[[], None],
        *,
        at_middle: Callable[[], None],
        on_error: Callable[[], None],
    ) -> Iterator["_Written"]:
        """Results as they come. An error is raised once nothing is running any more.

        Args:
            alive: Called at least once a second.
            at_middle: Called when half of the pieces are written, and some have not been begun.
        """
        middle = max(1, len(pieces) // 2)
        upcoming = iter(pieces)
        with _own_or_given(self._threads) as threads:
            futures: list[ThreadFuture[_Written]] = []
            # Not `wait`, which looks at all that are left whenever one of them is done.
            done: SimpleQueue[ThreadFuture[_Written]] = SimpleQueue()

            def submit(count: int) -> None:
                for piece in islice(upcoming, count):
                    futures.append(_submitted(threads, work, *piece))
                    futures[-1].add_done_callback(done.put)

            try:
                submit(middle)
                for number in range(1, len(pieces) + 1):
                    result = _next(done, alive).result()
                    if number == middle:
                        at_middle()
                    submit(1)
                    yield result
            except BaseException:
                on_error()
                raise
            finally:
                for future in futures:
                    future.cancel()
                for future in futures:
                    if not future.cancelled():
                        future.exception()  # waits

    @contextmanager
    def _open(self, file: str, size_bytes: int) -> Iterator[ObjectWriter]:
        self._written.append(self._attempt.key(file))
        with self._storage.open_writer(self._written[-1], size_bytes) as writer:
            yield writer

    def _put(self, file: str, data: bytes) -> ObjectRecord:
        self._written.append(self._attempt.key(file))
        self._storage.put(self._written[-1], data)
        return ObjectRecord(file, len(data), sha256_digest(data))


def split_items(items: Iterable[WriteItem]) -> tuple[list[WriteItem], list[WriteItem]]:
    """Tensors and values of a plan, each in the plan's order."""
    tensors: list[WriteItem] = []
    values: list[WriteItem] = []
    for item in items:
        (values if item.type is WriteItemType.BYTE_IO else tensors).append(item)
    return tensors, values


def stock_metadata(metadata: Metadata, places: Mapping[MetadataIndex, _StorageInfo]) -> bytes:
    """``.metadata`` as stock DCP writes it: a pickle, for readers without keepstep."""
    return pickle.dumps(replace(metadata, version=_DCP_VERSION, storage_data=dict(places)))


@dataclass(frozen=True, slots=True)
class _Written:
    """What came of writing one piece."""

    checksums: list[RunChecksums]
    digests: list[tuple[int, int]]
    """Number of a slot, and what its bytes in this piece add to its content digest."""


def _submitted(
    threads: Executor, work: Callable[[int, int], _Written], start: int, stop: int
) -> ThreadFuture[_Written]:
    try:
        return threads.submit(work, start, stop)
    except RuntimeError:  # the interpreter is ending, and its threads take nothing on any more
        future: ThreadFuture[_Written] = ThreadFuture()
        future.set_result(work(start, stop))
        return future


def _next(
    done: SimpleQueue[ThreadFuture[_Written]], alive: Callable[[], None]
) -> ThreadFuture[_Written]:
    while True:
        try:
            future = done.get(timeout=_LIFE_SECONDS)
        except Empty:
            alive()
        else:
            alive()
            return future


_one_at_a_time = threading.Lock()
"""Gathering and hashing wait for memory: two threads at it take twice the CPU time and no less of
anything else. The other threads are with the disk meanwhile."""


def _write_piece(contents: Contents, writer: ObjectWriter, start: int, stop: int) -> _Written:
    slots = contents.layout.slots
    checksums: list[RunChecksums] = []
    digests: list[tuple[int, int]] = []
    with contents.piece(start, stop) as piece:
        with _one_at_a_time:
            for low, portion, parts in piece.portions:
                checksums.append(run_checksums(low, portion))
                for number, within, offset, size_bytes in parts:
                    data = portion[offset - low : offset - low + size_bytes]
                    digests.append((number, slots[number].place.digest(within, data)))
        if len(piece.data) != stop - start:
            raise InternalError(f"bytes {start} to {stop} of the shard are gone")
        writer.write(start, piece.data)
    return _Written(checksums, digests)


def _pieces(size_bytes: int) -> list[tuple[int, int]]:
    """Where to cut a file for writing: at whole pages, and in two at the least."""
    piece_bytes = min(PIECE_BYTES, -(-size_bytes // (2 * PAGE_BYTES)) * PAGE_BYTES)
    return [
        (start, min(start + piece_bytes, size_bytes))
        for start in range(0, size_bytes, piece_bytes or 1)
    ]


def _resolved(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    data = planner.resolve_data(item)
    return cast("torch.Tensor", data.wait() if isinstance(data, Future) else data).detach()


@contextmanager
def _own_or_given(threads: Executor | None) -> Iterator[Executor]:
    if threads is not None:
        yield threads
        return
    with ThreadPoolExecutor(WRITER_THREADS, thread_name_prefix="keepstep-write") as own:
        yield own
