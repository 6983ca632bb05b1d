"""Reading tensors back: any destination, every byte verified, no byte more than needed."""

import threading
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from models import open_session
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from keepstep.checkpoint.pieces import Buffers
from keepstep.checkpoint.planner import LoadPlanner
from keepstep.checkpoint.reader import ShardReader, Snapshot
from keepstep.checkpoint.reads import PIECE_BYTES
from keepstep.commit.blocks import BLOCK_BYTES
from keepstep.commit.catalog import Catalog
from keepstep.errors import CorruptCheckpointError
from keepstep.storage.local import LocalStorage
from keepstep.storage.local_reading import FileReader

MIB = 1 << 20


def save(uri: Path, **tensors: Tensor) -> None:
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    with open_session(str(uri)) as session:
        session.track(kept=module)
        session.restore()
        session.tick()


def reader_of(uri: Path) -> ShardReader:
    storage = LocalStorage(uri)
    (checkpoint,) = Catalog(storage).candidates()
    return ShardReader(storage, Snapshot.open(storage, Catalog(storage).manifest(checkpoint)))


def load(uri: Path, **targets: Tensor) -> ShardReader:
    """By stock DCP's own load."""
    reader = reader_of(uri)
    dcp.load({"kept": targets}, storage_reader=reader, no_dist=True)
    return reader


class OneTensor(LoadPlanner):
    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        return self.target


def load_region(uri: Path, name: str, offsets: tuple[int, ...], target: Tensor) -> ShardReader:
    """A part of a tensor that was saved as one chunk, as a sharded tensor asks for it."""
    reader = reader_of(uri)
    reader.set_up_storage_reader(reader.read_metadata(), is_coordinator=True)
    item = ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=MetadataIndex(f"kept.{name}"),
        dest_offsets=torch.Size([0] * target.dim()),
        storage_index=MetadataIndex(f"kept.{name}", torch.Size([0] * target.dim())),
        storage_offsets=torch.Size(offsets),
        lengths=target.shape,
    )
    reader.read_data(LoadPlan([item]), OneTensor(target)).wait()
    return reader


def files_of(uri: Path) -> list[Path]:
    return sorted(uri.glob("steps/*/*.distcp"))


TYPES = [torch.float32, torch.bfloat16, torch.complex64, torch.int8, torch.bool]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (700, 1300)], ids=str)
def test_any_destination_gets_the_same_values(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    saved = (torch.rand(shape) * 100).to(dtype)
    save(tmp_path, saved=saved)
    wider = torch.complex128 if dtype.is_complex else torch.float64
    targets = {
        "contiguous": torch.zeros(shape, dtype=dtype),
        "strided": torch.zeros((*shape, 2), dtype=dtype)[..., 0],
        "reversed": torch.zeros(shape[::-1], dtype=dtype).permute(tuple(range(len(shape)))[::-1]),
        "wider": torch.zeros(shape, dtype=wider),
    }
    for name, target in targets.items():
        load(tmp_path, saved=target)
        assert torch.equal(target, saved.to(target.dtype)), name


def test_ten_thousand_small_tensors_are_read_in_few_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {f"t{number}": torch.full((1024,), float(number)) for number in range(10_000)}
    save(tmp_path, **saved)
    calls: list[int] = []
    real = FileReader.read_into

    def counted(self: FileReader, offset: int, buffer: memoryview) -> int:
        calls.append(offset)
        return real(self, offset, buffer)

    monkeypatch.setattr(FileReader, "read_into", counted)
    targets = {name: torch.zeros(1024) for name in saved}
    load(tmp_path, **targets)
    assert all(torch.equal(targets[name], saved[name]) for name in saved)
    size_bytes = sum(path.stat().st_size for path in files_of(tmp_path))
    assert len(calls) <= size_bytes / (8 * MIB) + 2


def test_each_block_is_read_once_though_tensors_share_it(tmp_path: Path) -> None:
    numbers = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 600_000, (60,), generator=numbers).tolist()
    saved = {f"t{n}": torch.rand(size) for n, size in enumerate(sizes)}
    save(tmp_path, **saved)
    targets = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
    reader = load(tmp_path, **targets)
    assert all(torch.equal(targets[name], saved[name]) for name in saved)
    assert reader.bytes_read <= sum(path.stat().st_size for path in files_of(tmp_path))


SLICES = [
    ((64 << 10, 256), 0),
    ((4, 16 << 10, 256), 0),
    ((2, 64 << 10, 128), 1),
]


@pytest.mark.parametrize(("shape", "dimension"), SLICES, ids=str)
@pytest.mark.parametrize("is_contiguous", [True, False])
def test_an_eighth_reads_little_more_than_an_eighth(
    tmp_path: Path, shape: tuple[int, ...], dimension: int, is_contiguous: bool
) -> None:
    saved = torch.rand(shape)
    save(tmp_path, saved=saved)
    parts = 4 if shape[dimension] == 4 else 8
    size = shape[dimension] // parts
    wanted = saved.narrow(dimension, 3 * size, size)
    target = torch.zeros(wanted.shape if is_contiguous else (*wanted.shape, 2))
    target = target if is_contiguous else target[..., 0]
    offsets = tuple(3 * size if d == dimension else 0 for d in range(len(shape)))
    reader = load_region(tmp_path, "saved", offsets, target)
    assert torch.equal(target, wanted)
    assert reader.bytes_read <= 1.25 * wanted.numel() * 4


def test_columns_come_through_buffers_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = torch.rand(8192, 4096)  # 128 MiB
    save(tmp_path, saved=saved)
    made: list[int] = []
    real = Buffers._new

    def counted(self: Buffers, size_bytes: int) -> memoryview:
        made.append(size_bytes)
        return real(self, size_bytes)

    monkeypatch.setattr(Buffers, "_new", counted)
    target = torch.zeros(8192, 512)
    load_region(tmp_path, "saved", (0, 1024), target)
    assert torch.equal(target, saved[:, 1024:1536])
    assert sum(made) <= 4 * LocalStorage.capabilities.concurrency * PIECE_BYTES


def test_damage_in_any_block_is_named_and_nothing_hangs(tmp_path: Path) -> None:
    saved = {"large": torch.rand(5 * MIB), **{f"s{n}": torch.rand(900) for n in range(2000)}}
    save(tmp_path, **saved)
    (path,) = files_of(tmp_path)
    size_bytes = path.stat().st_size
    threads = threading.active_count()
    for block in range(0, -(-size_bytes // BLOCK_BYTES), 97):
        place = min(block * BLOCK_BYTES + 20_000, size_bytes - 1)
        flip(path, place)
        reader = reader_of(tmp_path)
        targets = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
        with pytest.raises(CheckpointException) as caught:
            dcp.load({"kept": targets}, storage_reader=reader, no_dist=True)
        (cause,) = [cause for cause, _ in caught.value.failures.values()]
        assert isinstance(cause, CorruptCheckpointError)
        assert (Path(cause.key or "").name, cause.block) == (path.name, block)
        flip(path, place)
    assert threading.active_count() == threads


def test_of_several_damaged_blocks_the_first_is_named(tmp_path: Path) -> None:
    save(tmp_path, saved=torch.rand(40 * MIB // 4))
    (path,) = files_of(tmp_path)
    for block in (1100, 640, 300, 352):
        flip(path, block * BLOCK_BYTES + 1)
    target = torch.zeros(40 * MIB // 4)
    for _ in range(5):
        with pytest.raises(CorruptCheckpointError) as caught:
            load_region(tmp_path, "saved", (0,), target)
        assert caught.value.block == 300


def test_a_file_of_another_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    save(tmp_path, saved=torch.rand(MIB))
    (path,) = files_of(tmp_path)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptCheckpointError, match="bytes instead of"):
        load_region(tmp_path, "saved", (0,), torch.zeros(MIB))


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))
