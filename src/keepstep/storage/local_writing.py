"""Writing one large file in pieces, at the speed of the disk.

Where the file system allows it, pieces go to the disk directly: without the page cache there is no
second copy of the data, no fresh pages to find, and nothing left to flush at the end.
"""

import ctypes
import errno
import functools
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from keepstep.storage.base import Buffer

_DIRECT_ALIGNMENT_BYTES = 4096
_UNSYNCED_BYTES = 512 << 20
_SMALLEST_DIRECT_BYTES = 1 << 20
"""Below this a file is not worth a second descriptor."""

_CANNOT = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}


class FileWriter:
    """A new file. Its methods raise ``OSError``; :meth:`write` is thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC, 0o666)
        self._direct: int | None = None
        self._lock = threading.Lock()
        self._unsynced_bytes = 0

    def allocate(self, size_bytes: int) -> None:
        """Reserve room for the whole file. Call it once, before the first write."""
        _allocate(self._file, size_bytes)
        if size_bytes >= _SMALLEST_DIRECT_BYTES:
            self._direct = _open_direct(self._path)

    def write(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at ``offset``."""
        view = memoryview(data).cast("B")
        if self._direct is not None and _is_aligned(offset, len(view)):
            try:
                _write_all(self._direct, offset, view)
            except OSError as error:
                if error.errno != errno.EINVAL:  # memory or device want another alignment
                    raise
            else:
                return
        _write_all(self._file, offset, view)
        self._write_back(offset, len(view))

    def _write_back(self, offset: int, size_bytes: int) -> None:
        """Let the disk begin, and wait for it now and then: the final flush then ends soon."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, offset, size_bytes, os.POSIX_FADV_DONTNEED)
        with self._lock:
            self._unsynced_bytes += size_bytes
            is_enough = self._unsynced_bytes >= _UNSYNCED_BYTES
            if is_enough:
                self._unsynced_bytes = 0
        if is_enough:
            sync_file(self._file)

    def sync(self) -> None:
        """Make everything written durable."""
        sync_file(self._file)

    def close(self) -> None:
        """Close the descriptors, once."""
        for descriptor in (self._direct, self._file):
            if descriptor is not None:
                with suppress(OSError):  # what matters was said by sync()
                    os.close(descriptor)
        self._direct = None


def sync_file(descriptor: int) -> None:
    """Make a file's content and size durable."""
    if sys.platform == "darwin":
        import fcntl

        # fsync on macOS leaves the data in the drive's cache.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


_CLOEXEC = getattr(os, "O_CLOEXEC", 0)


def _is_aligned(offset: int, size_bytes: int) -> bool:
    return not (offset | size_bytes) % _DIRECT_ALIGNMENT_BYTES


def _open_direct(path: Path) -> int | None:
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | _CLOEXEC)
    except OSError as error:
        if error.errno in _CANNOT:  # not on this file system
            return None
        raise


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Reserve the blocks now: a full disk shows before anything is written, and writes that do not
    extend the file need not wait for each other.
    """
    fallocate = _fallocate()
    if fallocate is None or size_bytes == 0:
        return
    # Not os.posix_fallocate: where the file system cannot, glibc would write every block instead.
    while fallocate(descriptor, 0, 0, size_bytes) != 0:
        number = ctypes.get_errno()
        if number in _CANNOT:
            return
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function


def _write_all(descriptor: int, offset: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)
