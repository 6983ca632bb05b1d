"""Frames: chunks of tensors in the file format of ``torch.save``, made without ``torch.save``.

Stock DCP stores each chunk as a zip archive of its own inside the shard file. An archive is, in
order, entries before the data, the header of the data's entry, the data, and the central directory.
All but the data depends only on dtype, shape and alignment; it is built here, so that the data is
written straight from the tensor's memory and lies at an aligned place known in advance.

The archives carry no CRC-32 (``torch.load`` does not check one): the index's block checksums do
that job.
"""

import io
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

DATA_ALIGNMENT_BYTES = 64
"""Chunk data starts on a multiple of this in the shard file; the same as in ``torch.save``."""

_ROOT = "archive"
_ZIP64 = 0xFFFFFFFF
_PADDING_FIELD = 0x4246  # "FB": what torch names its own padding in a zip header's extra field


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """The bytes around a chunk's data."""

    prefix: bytes
    suffix: bytes
    data_bytes: int

    @property
    def length(self) -> int:
        """Bytes of the whole frame."""
        return len(self.prefix) + self.data_bytes + len(self.suffix)


def tensor_frame(dtype: torch.dtype, shape: Sequence[int], offset: int) -> FrameLayout:
    """The frame of a contiguous chunk that starts ``offset`` bytes into its file."""
    return _layout(dtype, tuple(shape), -offset % DATA_ALIGNMENT_BYTES)


def tensor_memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous host tensor, not copied. Any dtype, of which numpy knows fewer."""
    if tensor.numel() == 0:
        return memoryview(b"")
    data: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(data)


def has_frames(dtype: torch.dtype) -> bool:
    """Whether torch has a way to store tensors of a dtype; of those below a byte it has none."""
    try:
        tensor_frame(dtype, (0,), 0)
    except KeyError:
        return False
    return True


def dtype_name(dtype: torch.dtype) -> str:
    """As the index spells it: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def dtype_from_name(name: str) -> torch.dtype:
    """The dtype an index names. *Raises:* ``ValueError`` for anything else."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        msg = f"{name!r} is no dtype of this torch ({torch.__version__})"
        raise ValueError(msg)  # noqa: TRY004  # the value came from a file
    return dtype


@lru_cache(maxsize=1 << 16)
def _layout(dtype: torch.dtype, shape: tuple[int, ...], phase: int) -> FrameLayout:
    """``phase``: where in the alignment the data must start, counted from the frame's start."""
    data_bytes = dtype.itemsize
    for size in shape:
        data_bytes *= size
    entries = _Entries()
    entries.add("data.pkl", _pickled_tensor(dtype, shape, data_bytes))
    entries.add("byteorder", b"little")
    entries.add("version", b"3\n")
    entries.start_data("data/0", data_bytes, phase)
    return FrameLayout(bytes(entries.body), entries.directory(data_bytes), data_bytes)


def _pickled_tensor(dtype: torch.dtype, shape: tuple[int, ...], data_bytes: int) -> bytes:
    """What ``torch.save`` pickles for a contiguous CPU tensor that owns its storage."""
    # torch itself says how a tensor of this dtype is rebuilt; only size and stride are put in.
    rebuild, arguments = torch.empty(0, dtype=dtype, device="cpu").__reduce_ex__(2)
    storage, _, _, _, *rest = arguments
    strides = torch.empty(shape, dtype=dtype, device="meta").stride()
    buffer = io.BytesIO()
    pickler = _TensorPickler(buffer, storage, data_bytes)
    pickler.dump(_Reduced(rebuild, (storage, 0, shape, strides, *rest)))
    return buffer.getvalue()


class _Reduced:
    """Pickles as a call."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


class _TensorPickler(pickle.Pickler):
    """Refers to the storage by name, as ``torch.save`` does."""

    def __init__(self, buffer: io.BytesIO, storage: Any, data_bytes: int) -> None:
        super().__init__(buffer, protocol=2)
        self._storage = storage
        self._data_bytes = data_bytes

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if obj is not self._storage:
            return None
        if isinstance(obj, torch.storage.TypedStorage):
            kind = getattr(torch, obj._pickle_storage_type())  # the name torch.save writes
            return ("storage", kind, "0", "cpu", self._data_bytes // obj._element_size())
        return ("storage", torch.UntypedStorage, "0", "cpu", self._data_bytes)


class _Entries:
    """The entries of a zip archive, stored, sizes known, checksums zero (APPNOTE.TXT 4.3)."""

    def __init__(self) -> None:
        self.body = bytearray()
        self._central = bytearray()
        self._count = 0

    def add(self, name: str, data: bytes) -> None:
        self._start(name, len(data), extra=b"")
        self.body += data

    def start_data(self, name: str, data_bytes: int, phase: int) -> None:
        """The header of the last entry, padded so that its data begins at ``phase``."""
        header_bytes = 30 + len(f"{_ROOT}/{name}") + len(_zip64_sizes(data_bytes)) + 4
        padding = (phase - len(self.body) - header_bytes) % DATA_ALIGNMENT_BYTES
        extra = struct.pack("<HH", _PADDING_FIELD, padding) + b"Z" * padding
        self._start(name, data_bytes, extra)

    def directory(self, data_bytes: int) -> bytes:
        """Everything after the data."""
        start = len(self.body) + data_bytes
        size = len(self._central)
        end = bytearray()
        if start >= _ZIP64:
            end += struct.pack(
                "<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, self._count, self._count, size, start
            )
            end += struct.pack("<IIQI", 0x07064B50, 0, start + size, 1)
        count, shown = self._count, min(start, _ZIP64)
        end += struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, size, shown, 0)
        return bytes(self._central + end)

    def _start(self, name: str, size: int, extra: bytes) -> None:
        encoded = f"{_ROOT}/{name}".encode()
        zip64 = _zip64_sizes(size)
        shown = min(size, _ZIP64)
        version = 45 if zip64 else 20
        common = struct.pack("<HHHHIII", 0, 0, 0, 0, 0, shown, shown)
        offset = len(self.body)
        self.body += struct.pack("<IH", 0x04034B50, version) + common
        self.body += (
            struct.pack("<HH", len(encoded), len(zip64) + len(extra)) + encoded + zip64 + extra
        )
        self._central += struct.pack("<IHH", 0x02014B50, version, version) + common
        self._central += struct.pack("<HHHHHII", len(encoded), len(zip64), 0, 0, 0, 0, offset)
        self._central += encoded + zip64
        self._count += 1


def _zip64_sizes(size: int) -> bytes:
    return struct.pack("<HHQQ", 1, 16, size, size) if size >= _ZIP64 else b""
