"""Files below a path: made durable, dropped from the page cache, read into it, removed."""

import os
import shutil
from pathlib import Path

_BUFFER_BYTES = 8 << 20


def files_below(path: Path) -> list[Path]:
    """The file itself, or all files in the directory."""
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file()]


def make_durable(path: Path) -> None:
    """For peers that do not: fsync all files, their directories, and the one above."""
    for file in files_below(path):
        _fsync(file)
    directories = [path, *path.rglob("*")] if path.is_dir() else []
    for directory in directories:
        if directory.is_dir():
            _fsync(directory)
    _fsync(path.parent)


def drop_from_cache(path: Path) -> None:
    """The next read of these files comes from the disk. Other files stay cached."""
    for file in files_below(path):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_into_cache(path: Path) -> None:
    """The next read of these files comes from memory."""
    buffer = bytearray(_BUFFER_BYTES)
    for file in files_below(path):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def remove(path: Path) -> None:
    """A file or a directory with all that is in it; missing is fine."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
