"""What one load plan asks for: by file, as pieces."""

import io
from collections.abc import Iterator, Mapping

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from keepstep.checkpoint.frames import dtype_from_name, tensor_memory
from keepstep.checkpoint.pieces import BouncedPiece, Buffers, DirectPiece, Piece
from keepstep.checkpoint.spans import byte_cut, spans
from keepstep.checkpoint.stretches import FilePieces
from keepstep.commit.blocks import FileBlocks
from keepstep.commit.index import Frame
from keepstep.errors import InternalError

PIECE_BYTES = 8 << 20
"""The most bytes that wait in one buffer."""


class Reads:
    """The byte ranges of a load, and where they end. Nothing is read yet.

    *Raises:* ``InternalError`` if the plan does not fit its own tensors.
    """

    def __init__(
        self,
        plan: LoadPlan,
        planner: LoadPlanner,
        places: Mapping[MetadataIndex, Frame],
        files: Mapping[str, FileBlocks],
        *,
        in_place_bytes: int,
    ) -> None:
        self._planner = planner
        self._tensors: list[tuple[ReadItem, torch.Tensor]] = []
        self._values: list[tuple[ReadItem, bytearray]] = []
        pieces: dict[str, list[Piece]] = {}
        with torch.no_grad():
            for item in plan.items:
                if item.type is LoadItemType.BYTE_IO:
                    data = bytearray(places[item.storage_index].data_bytes)
                    self._values.append((item, data))
                else:
                    self._tensors.append((item, planner.resolve_tensor(item).detach()))
        devices = {target.device for _, target in self._tensors if target.is_cuda}
        for device in devices:  # what was queued for a destination comes before what is read
            torch.cuda.current_stream(device).synchronize()
        # One device copy engine serves all: pinned if any destination is on one.
        self.buffers = Buffers(PIECE_BYTES, is_pinned=bool(devices))
        for item, data in self._values:
            frame = places[item.storage_index]
            pieces.setdefault(frame.file, []).append(
                DirectPiece(frame.data_offset, memoryview(data))
            )
        for item, target in self._tensors:
            frame = places[item.storage_index]
            pieces.setdefault(frame.file, []).extend(self._pieces(item, frame, target))
        self.files = {
            file: FilePieces(files[file], found, in_place_bytes=in_place_bytes)
            for file, found in sorted(pieces.items())
        }

    @property
    def needed(self) -> dict[str, list[range]]:
        """Blocks by file, in merged ranges."""
        return {file: pieces.needed for file, pieces in self.files.items()}

    @property
    def has_tensors(self) -> bool:
        return bool(self._tensors)

    def finish(self) -> None:
        """Tell the planner that everything has arrived."""
        for item, data in self._values:
            self._planner.load_bytes(item, io.BytesIO(data))
        for item, target in self._tensors:
            self._planner.commit_tensor(item, target)

    def _pieces(self, item: ReadItem, frame: Frame, target: torch.Tensor) -> Iterator[Piece]:
        if target.shape != item.lengths:
            raise InternalError(
                f"{frame.fqn}: the plan asks for {item.lengths} into {target.shape}"
            )
        dtype = dtype_from_name(frame.dtype or "")
        is_host = target.device.type == "cpu" and target.dtype == dtype
        is_direct = is_host and target.is_contiguous()
        if is_direct and target.shape == frame.shape:  # the common case, and often many of them
            if target.numel():
                yield DirectPiece(frame.data_offset, tensor_memory(target))
            return
        cut = byte_cut(dtype.itemsize, most_bytes=PIECE_BYTES, joins_rows=is_direct)
        for span in spans(frame.shape, item.storage_offsets, item.lengths, cut):
            start = frame.data_offset + span.start * dtype.itemsize
            part = target[span.place]
            if is_host and span.is_whole and part.is_contiguous():
                yield DirectPiece(start, tensor_memory(part))
            else:
                yield BouncedPiece(start, span, part, dtype, self.buffers)
