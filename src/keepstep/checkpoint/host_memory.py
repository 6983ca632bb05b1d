"""Host memory that is kept and reused, and copying tensors into it."""

import ctypes
import logging
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress

import torch

from keepstep.checkpoint.frames import tensor_memory

logger = logging.getLogger("keepstep.checkpoint")

SMALL_BYTES = 64 << 10
_BOUNCE_BYTES = 8 << 20
_TOUCHED_BYTES = 256 << 20
_WIPE_ON_FORK = 18  # MADV_WIPEONFORK; Python has no name for it
# A loader's worker must not keep the pages, nor make ours be copied. But the addresses stay taken
# there: were they free (MADV_DONTFORK), a buffer's end would unmap what has come to lie at them.
_ADVICE = [_WIPE_ON_FORK] if sys.platform == "linux" else []
if hasattr(mmap, "MADV_HUGEPAGE"):
    _ADVICE.append(mmap.MADV_HUGEPAGE)
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device


class HostBuffer:
    """Pages of host memory: touched once, so that no later use has to wait for fresh ones.

    Args:
        is_pinned: Whether a CUDA device copies to and from it.
        alive: Called now and then while the pages are touched.

    Release it with :meth:`close`.
    """

    def __init__(
        self,
        size_bytes: int,
        *,
        is_pinned: bool = False,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._pages = fresh_pages(size_bytes)
        self.tensor = torch.frombuffer(self._pages, dtype=torch.uint8)
        """The bytes."""
        for start in range(0, size_bytes, _TOUCHED_BYTES):
            self.tensor[start : start + _TOUCHED_BYTES].zero_()
            alive()
        self.view = memoryview(self._pages)
        self.address = self.tensor.data_ptr()
        self.is_pinned = is_pinned
        """Whether it was asked for."""
        self._is_registered = is_pinned and self._register()

    def close(self) -> None:
        """Give the memory back once the last view of it is gone."""
        if self._is_registered:
            self._is_registered = False
            result = int(torch.cuda.cudart().cudaHostUnregister(self.address))
            if result != 0:
                logger.warning("host memory could not be unpinned: CUDA error %d", result)
        self.view = memoryview(b"")
        self.tensor = torch.empty(0, dtype=torch.uint8, device="cpu")
        del self._pages

    def _register(self) -> bool:
        """Pin the pages; without it copies are slower, and that is all."""
        result = int(torch.cuda.cudart().cudaHostRegister(self.address, len(self.view), _PORTABLE))
        if result == 0:
            return True
        logger.warning("host memory could not be pinned: CUDA error %d", result)
        with suppress(RuntimeError):  # the error is remembered: let this launch run into it
            torch.zeros(1, device="cuda")
        return False


def fresh_pages(size_bytes: int) -> mmap.mmap:
    """Host memory by whole pages, large ones if the kernel has them."""
    pages = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    for advice in _ADVICE:
        with suppress(OSError):  # a kernel without it
            pages.madvise(advice)
    return pages


class CopyStreams:
    """A stream of its own on each CUDA device, for copies to the host. Thread-safe."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def now(self, tensors: Iterable[torch.Tensor]) -> dict[torch.device, torch.cuda.Event]:
        """Where the current stream of each device that holds any of the tensors stands."""
        devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
        for device in devices - self._streams.keys():
            self._streams[device] = torch.cuda.Stream(device)
        return {device: torch.cuda.current_stream(device).record_event() for device in devices}

    def device(
        self, events: Mapping[torch.device, torch.cuda.Event]
    ) -> AbstractContextManager[object]:
        """Make the first device current: a new thread's is 0, which may be another rank's."""
        return torch.cuda.device(next(iter(events))) if events else nullcontext()

    @contextmanager
    def after(self, events: Mapping[torch.device, torch.cuda.Event]) -> Iterator[None]:
        """Copies queued in this block wait for the events; they are complete when it has ended."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.device(events))
            for device, event in events.items():
                self._streams[device].wait_event(event)
                stack.enter_context(torch.cuda.stream(self._streams[device]))
            try:
                yield
            finally:
                for end in [self._streams[device].record_event() for device in events]:
                    end.synchronize()


def host_address(tensor: torch.Tensor) -> int | None:
    """Where a tensor's bytes lie in host memory, if they lie there one after the other."""
    is_plain = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    if tensor.device.type == "cpu" and is_plain:
        return tensor.data_ptr()
    return None


def copy_bytes(
    source: torch.Tensor, start: int, target: HostBuffer, offset: int, size_bytes: int
) -> None:
    """Copy part of a tensor's elements, in row-major order, into a buffer.

    The copy from a device is only queued on the current stream.

    Args:
        source: Any device, any strides.
        start: Bytes before the part; a multiple of the element's size.
        offset: Where it goes, in bytes from the start of the buffer; a multiple as well.
        size_bytes: Of the part; a multiple as well.
    """
    address = host_address(source)
    if address is not None:
        move_bytes(target.address + offset, address + start, size_bytes)
        return
    width = source.dtype.itemsize
    # Piece by piece: where elements have to be sorted first, torch makes a copy of all it is given.
    for done in range(0, size_bytes, _BOUNCE_BYTES):
        piece = target.tensor[offset + done : offset + min(done + _BOUNCE_BYTES, size_bytes)]
        _copy_elements(source, (start + done) // width, piece.view(source.dtype))


def host_pieces(tensor: torch.Tensor) -> Iterator[tuple[int, memoryview]]:
    """The bytes of a tensor that is not empty, in row-major order: where each piece begins, and it.

    Host memory is not copied where it lies in order; otherwise a piece is valid until the next.
    """
    if host_address(tensor) is not None:
        yield 0, tensor_memory(tensor)
        return
    size_bytes = tensor.numel() * tensor.dtype.itemsize
    bounce = torch.empty(min(size_bytes, _BOUNCE_BYTES), dtype=torch.uint8, device="cpu")
    for start in range(0, size_bytes, _BOUNCE_BYTES):
        piece = bounce[: size_bytes - start]
        with torch.no_grad():
            _copy_elements(tensor, start // tensor.dtype.itemsize, piece.view(tensor.dtype))
        if tensor.device.type == "cuda":
            torch.cuda.current_stream(tensor.device).synchronize()
        yield start, tensor_memory(piece)


def _copy_elements(source: torch.Tensor, start: int, target: torch.Tensor) -> None:
    """Elements ``start`` and on of ``source``, as many as the flat ``target`` takes."""
    if source.is_contiguous():
        flat = source.view(-1)[start : start + target.numel()]
        target.copy_(flat, non_blocking=source.is_cuda)
        return
    row_elements = source[0].numel()
    row, within = divmod(start, row_elements)
    while target.numel():
        rows = target.numel() // row_elements
        if within == 0 and rows:
            count = rows * row_elements
            whole = target[:count].view(rows, *source.shape[1:])
            whole.copy_(source[row : row + rows], non_blocking=source.is_cuda)
            row += rows
        else:
            count = min(row_elements - within, target.numel())
            _copy_elements(source[row], within, target[:count])
            row += 1
        within, target = 0, target[count:]


_libc = ctypes.CDLL(None)
_move_unlocked = _libc.memmove
_move_unlocked.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_move_locked = ctypes.PyDLL(None).memmove
_move_locked.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def move_bytes(target: int, source: int, size_bytes: int) -> None:
    """memmove between addresses; if it is much, without the GIL: taking that back costs as well."""
    move = _move_locked if size_bytes < SMALL_BYTES else _move_unlocked
    move(target, source, size_bytes)
