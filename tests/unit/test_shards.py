"""The image of a shard file: the same bytes from the tensors, from a staged copy, in any pieces."""

import io
import mmap
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from keepstep.checkpoint.contents import PIECE_BYTES, LiveContents, Slabs
from keepstep.checkpoint.digest import chunk_digest
from keepstep.checkpoint.host_memory import CopyStreams, HostBuffer, copy_bytes, host_pieces
from keepstep.checkpoint.shards import PAGE_BYTES, ShardIndex, ShardLayout, Values
from keepstep.checkpoint.staging import Staging
from keepstep.checkpoint.writer import ShardWriter
from keepstep.commit.index import RankIndex
from keepstep.commit.layout import CheckpointId, index_filename, shard_filename
from keepstep.errors import InternalError
from keepstep.testing.memory_storage import MemoryStorage


def alive() -> None:
    pass


ATTEMPT = CheckpointId(1, 1, "0" * 12)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "large": torch.randn(700, 1001),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "turned": torch.randn(300, 200).t(),
        "sparse rows": torch.randn(90, 64, 10)[::3, :, ::2],
        "half": torch.randn(33, dtype=torch.bfloat16),
        "complex": torch.randn(5, 5, dtype=torch.complex128),
        "flags": torch.rand(77) > 0.5,
        **{f"small.{n}": torch.full((n % 7 + 1,), n, dtype=torch.int64) for n in range(300)},
    }


def item(fqn: str, tensor: torch.Tensor) -> WriteItem:
    offsets = torch.Size([0] * tensor.dim())
    chunk = ChunkStorageMetadata(offsets, tensor.size())
    data = TensorWriteData(chunk, TensorProperties(dtype=tensor.dtype), tensor.size())
    return WriteItem(MetadataIndex(fqn, offsets), WriteItemType.TENSOR, tensor_data=data)


def values_at(offset: int) -> Values:
    items = [WriteItem(MetadataIndex(fqn), WriteItemType.BYTE_IO) for fqn in ("a", "b")]
    return Values.of(items, [b"one value", b"x" * 5000], offset)


def live(slabs: Slabs) -> LiveContents:
    all_tensors = tensors()
    layout = ShardLayout(item(fqn, tensor) for fqn, tensor in all_tensors.items())
    return LiveContents(
        layout, list(all_tensors.values()), values_at(layout.size_bytes), slabs, CopyStreams()
    )


@pytest.fixture
def slabs() -> Any:
    slabs = Slabs(2)
    yield slabs
    slabs.close()


def image(contents: Any, piece_bytes: int) -> bytes:
    size_bytes = contents.layout.size_bytes + len(contents.values.data)
    pieces = []
    for start in range(0, size_bytes, piece_bytes):
        with contents.piece(start, min(start + piece_bytes, size_bytes)) as piece:
            pieces.append(b"".join(bytes(portion.data) for portion in piece.portions))
            assert bytes(piece.data) == pieces[-1]
    return b"".join(pieces)


def test_every_chunk_is_a_file_of_torch_save_at_an_aligned_place(slabs: Slabs) -> None:
    contents = live(slabs)
    whole = image(contents, PIECE_BYTES)
    assert len(whole) % PAGE_BYTES == 0
    for slot, (fqn, tensor) in zip(contents.layout.slots, tensors().items(), strict=True):
        assert slot.item.index.fqn == fqn
        frame = whole[slot.offset : slot.offset + slot.frame.length]
        loaded = torch.load(io.BytesIO(frame), weights_only=True)
        assert loaded.dtype == tensor.dtype
        assert torch.equal(loaded, tensor)
        assert slot.data_offset % 64 == 0


@pytest.mark.parametrize("piece_bytes", [PAGE_BYTES, 5 * PAGE_BYTES, 1 << 20])
def test_pieces_of_any_size_make_the_same_file(slabs: Slabs, piece_bytes: int) -> None:
    contents = live(slabs)
    assert image(contents, piece_bytes) == image(contents, PIECE_BYTES)


def test_a_staged_copy_is_the_same_file_and_stays_it_when_tensors_change(slabs: Slabs) -> None:
    contents = live(slabs)
    expected = image(contents, PIECE_BYTES)
    sources = [tensor.clone() for tensor in tensors().values()]
    staging = Staging(CopyStreams())
    staged = staging.prepare(contents.layout, sources, contents.values, alive)
    staged.copy(range(len(sources)), alive)
    for source in sources:
        source.zero_()
    assert image(staged, 12 * PAGE_BYTES) == expected
    again = staging.prepare(contents.layout, sources, contents.values, alive)
    again.copy(range(len(sources)), alive)
    assert image(again, PIECE_BYTES) != expected, "the next save holds what is there by then"
    assert staging.allocations == 1
    staging.close()


def test_staging_grows_only_if_it_must() -> None:
    staging = Staging(CopyStreams())
    for rows, allocations in ((1000, 1), (900, 1), (500_000, 2), (10, 2)):
        tensor = torch.ones(rows)
        layout = ShardLayout([item("w", tensor)])
        staged = staging.prepare(layout, [tensor], values_at(layout.size_bytes), alive)
        staged.copy([0], alive)
        with staged.piece(0, layout.size_bytes) as piece:
            loaded = torch.load(io.BytesIO(bytes(piece.data)), weights_only=True)
        assert torch.equal(loaded, tensor)
        assert staging.allocations == allocations
    staging.close()


def test_the_index_is_what_encoding_it_whole_would_give(slabs: Slabs) -> None:
    contents = live(slabs)
    storage = MemoryStorage()
    index = ShardIndex(3, contents.layout, {"small.7": ("small", 7)})
    writer = ShardWriter(storage, ATTEMPT)
    digests = writer.write_shard(contents, index, alive=lambda: None)
    key = ATTEMPT.key(index_filename(3))
    read = RankIndex.from_bytes(storage.get(key), key)
    assert read.to_bytes() == storage.get(key)
    paths = {frame.fqn: frame.path for frame in read.frames}
    assert paths["small.7"] == ("small", 7)
    assert paths["large"] == ("large",)
    for digest, (fqn, tensor) in zip(digests, tensors().items(), strict=True):
        assert digest == chunk_digest(fqn, tensor, [0] * tensor.dim(), tensor.shape), fqn


def test_the_file_is_as_long_as_said_and_every_block_is_good(slabs: Slabs) -> None:
    contents = live(slabs)
    storage = MemoryStorage()
    writer = ShardWriter(storage, ATTEMPT)
    writer.write_shard(contents, ShardIndex(0, contents.layout, {}), alive=lambda: None)
    data = storage.get(ATTEMPT.key(shard_filename(0, 0)))
    key = ATTEMPT.key(index_filename(0))
    (blocks,) = RankIndex.from_bytes(storage.get(key), key).files
    assert blocks.size_bytes == len(data)
    assert data == image(contents, PIECE_BYTES)
    for number in range(len(blocks.blocks)):
        start = number * blocks.block_bytes
        assert blocks.block_is_good(number, data[start : start + blocks.block_size(number)])


def test_an_error_while_writing_waits_for_all_threads_and_leaves_no_object(
    slabs: Slabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = live(slabs)
    at_work: list[int] = []
    real = LiveContents.piece

    def failing(self: LiveContents, start: int, stop: int) -> Any:
        at_work.append(start)
        if len(at_work) == 2:
            raise OSError("out of order")
        return real(self, start, stop)

    monkeypatch.setattr(LiveContents, "piece", failing)
    storage = MemoryStorage()
    writer = ShardWriter(storage, ATTEMPT)
    with pytest.raises(OSError, match="out of order"):
        writer.write_shard(contents, ShardIndex(0, contents.layout, {}), alive=lambda: None)
    assert list(storage.list("")) == []
    with pytest.raises(InternalError):
        writer.records()


def test_a_shard_without_tensors_holds_its_values(slabs: Slabs) -> None:
    layout = ShardLayout([])
    contents = LiveContents(layout, [], values_at(0), slabs, CopyStreams())
    whole = image(contents, PIECE_BYTES)
    assert whole.startswith(b"one value" + b"x" * 5000)
    assert len(whole) == 2 * PAGE_BYTES


@pytest.mark.parametrize("fqn", ["large", "turned", "sparse rows", "complex", "half"])
@pytest.mark.parametrize("piece_bytes", [64, 64 * 37, 1 << 20])
def test_parts_of_tensors_are_copied_in_row_major_order(fqn: str, piece_bytes: int) -> None:
    tensor = tensors()[fqn]
    expected = bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    buffer = HostBuffer(len(expected))
    for start in range(0, len(expected), piece_bytes):
        size_bytes = min(piece_bytes, len(expected) - start)
        copy_bytes(tensor, start, buffer, start, size_bytes)
    assert bytes(buffer.view[: len(expected)]) == expected
    assert b"".join(bytes(piece) for _, piece in host_pieces(tensor)) == expected


def test_the_end_of_a_buffer_in_a_forked_process_leaves_other_memory_alone() -> None:
    buffer = HostBuffer(32 << 20)
    buffer.view[:4] = b"ours"
    if (child := os.fork()) == 0:
        with memoryview(mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)) as other:
            other[:5] = b"other"
            is_wiped = buffer.view[:4] == bytes(4)
            buffer.close()
            os._exit(0 if is_wiped and other[:5] == b"other" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert buffer.view[:4] == b"ours"


def test_a_slab_is_waited_for_and_made_once(slabs: Slabs) -> None:
    started, finish = threading.Barrier(3), threading.Event()

    def hold() -> None:
        with slabs.one(is_pinned=False):
            started.wait(10)
            finish.wait(10)

    holders = [threading.Thread(target=hold) for _ in range(2)]
    for holder in holders:
        holder.start()
    started.wait(10)
    waiter = threading.Thread(target=lambda: slabs.one(is_pinned=False).__enter__())
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive(), "both slabs are in use"
    finish.set()
    for thread in (*holders, waiter):
        thread.join(10)
        assert not thread.is_alive()
    assert slabs.allocations == 2
    slabs._free.put(None)  # the waiter has kept its own


class OneByOne(Executor):
    """Runs what was submitted when told to, in the caller's thread."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, lambda: fn(*args, **kwargs)))
        if len(self._waiting) == 1:
            self.run_one()
        return future

    def run_one(self) -> None:
        if self._waiting:
            future, work = self._waiting.pop(0)
            future.set_result(work())


def calls_to_write(num_pieces: int) -> int:
    """How many functions are called, in Python and C, when pieces are done one after another."""
    threads, calls = OneByOne(), []
    writer = ShardWriter(MemoryStorage(), ATTEMPT, threads=threads)
    pieces = [(number, number + 1) for number in range(num_pieces)]
    results = writer._each(
        lambda start, _: start, pieces, threads.run_one, at_middle=alive, on_error=alive
    )
    sys.setprofile(lambda _, event, __: calls.append(event) if "call" in event else None)
    try:
        written = list(results)
    finally:
        sys.setprofile(None)
    assert written == list(range(num_pieces))
    return len(calls)


def test_the_work_beside_writing_grows_with_the_pieces_and_not_with_their_square() -> None:
    assert calls_to_write(320) < 12 * calls_to_write(40)
