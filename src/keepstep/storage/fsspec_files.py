"""What fsspec's file systems leave to their users: whole writes, honest listings, order."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from fsspec.dircache import DirCache
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

TEMPORARY = ".tmp-"
"""Start of the names of files that are not yet objects."""


def forget_listings(fs: Any) -> None:
    """Have the next answer come from the store: another process may have written meanwhile."""
    cache = getattr(fs, "dircache", None)
    if isinstance(cache, DirCache):
        cache.use_listings_cache = False
    fs.invalidate_cache()


def size_of(fs: Any, path: str) -> int:
    """Bytes in a file. *Raises:* ``FileNotFoundError``; what else the backend raises."""
    # Not fs.exists and its like: they take every failure for an absence.
    forget_listings(fs)
    info = fs.info(path)
    if info["type"] != "file":
        raise FileNotFoundError(path)
    return int(info["size"])


def is_taken(fs: Any, path: str) -> bool:
    """Whether there is a file. *Raises:* what the backend raises if it cannot say."""
    try:
        size_of(fs, path)
    except FileNotFoundError:
        return False
    return True


def walk(fs: Any, path: str) -> Iterator[tuple[str, int]]:
    """Path and size of every file below a directory; none if it is not there.

    *Raises:* what the backend raises if it cannot say.
    """
    # Not fs.walk or fs.find: where they ask for one directory at a time, they leave out those that
    # could not be listed.
    try:
        listed = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    for info in listed:
        name = info["name"].rstrip("/")
        if info["type"] == "file":
            yield name, int(info["size"])
        elif name.strip("/") != path.strip("/"):
            yield from walk(fs, name)


def open_stream(fs: Any, path: str, mode: str, block_bytes: int) -> Any:
    """A new file, to be written from its start to its end."""
    file = fs.open(path, mode, block_size=block_bytes)
    if (pipeline := getattr(file, "set_pipelined", None)) is not None:
        pipeline(True)  # paramiko's: else each 32 KiB wait for the reply to those before
    return file


def renames(fs: Any) -> bool:
    """Whether moving a file is one operation, and not a copy and a deletion."""
    return getattr(type(fs), "mv", None) is not AbstractFileSystem.mv


def write_by_rename(fs: Any, path: str, data: bytes) -> None:
    """Write a file that nobody sees before it is whole; an older one of this name is replaced."""
    directory, _, name = path.rpartition("/")
    temporary = f"{directory}/{TEMPORARY}{name}-{secrets.token_hex(4)}"
    try:
        fs.pipe_file(temporary, data)
        _rename(fs, temporary, path)
    except BaseException:
        with suppress(Exception):  # what led here is raised, and it matters more
            fs.rm_file(temporary)
        raise


def _rename(fs: Any, temporary: str, path: str) -> None:
    with suppress(FileExistsError):
        fs.mv(temporary, path)
    # Some servers rename only to a free name, and not all of them say so.
    if is_taken(fs, temporary):
        fs.rm_file(path)
        fs.mv(temporary, path)


def discard(fs: Any, file: Any, path: str) -> None:
    """End an unfinished file without making an object of it, if the store answers."""
    with suppress(Exception):  # what led here is raised, and it matters more
        if isinstance(file, AbstractBufferedFile):
            file.closed = True  # closing, also by the garbage collector, would complete it
            file.discard()
        else:
            file.close()
    with suppress(Exception):  # as above
        fs.rm_file(path)


class InOrder:
    """Writes the parts of a file in order, whichever order they come in.

    Whoever brings a part early leaves a copy; while one part is being written all others wait, so
    that there are no more copies than threads if each brings its parts in order. Thread-safe.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._next = 0
        self._early: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def send(self, number: int, data: memoryview) -> None:
        """Take a part, numbered from 0. *Blocks:* while another is being written."""
        with self._lock:
            if number != self._next:
                self._early[number] = bytes(data)
                return
            self._write(data)
            while (early := self._early.pop(self._next, None)) is not None:
                self._write(early)

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._next += 1
