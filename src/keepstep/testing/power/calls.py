"""The system calls by which this process changes one file system, seen one by one."""

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

_BY_PATH = ("mkdir", "rmdir", "unlink", "remove", "link", "rename", "replace")
_BY_DESCRIPTOR = ("fsync", "fdatasync", "ftruncate")
_WRITES = ("write", "pwrite")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that is about to be made."""

    name: str
    root: Path
    path: Path
    """What it is about, below the root; of two names the new one."""
    is_directory: bool
    make: Callable[[], Any]
    """Makes it, and returns what it returned."""
    make_half: Callable[[], Any] | None = None
    """Writes half of what is to be written, for a call that writes."""

    def __str__(self) -> str:
        return f"{self.name} {'directory ' if self.is_directory else ''}{self.path}"


@contextmanager
def calls_seen(root: Path, see: Callable[[Call], Any]) -> Iterator[None]:
    """Every call below ``root`` goes through ``see``, which makes it, or does not.

    Only calls that go through the module ``os`` or ``io.open`` are seen. What a Python file object
    writes is not: it shows when the file is synced. Advice to write back is not passed on, as no
    kernel need follow it. All threads of this process are concerned, so there can be one such block
    at a time.
    """
    seer = _Seer(root, see)
    with ExitStack() as stack:
        for name in _BY_PATH:
            stack.enter_context(patch.object(os, name, seer.by_path(name)))
        for name in (*_BY_DESCRIPTOR, *_WRITES):
            stack.enter_context(patch.object(os, name, seer.by_descriptor(name)))
        stack.enter_context(patch.object(os, "posix_fadvise", seer.posix_fadvise()))
        stack.enter_context(patch.object(os, "open", seer.os_open()))
        stack.enter_context(patch.object(io, "open", seer.io_open()))
        yield


class _Seer:
    def __init__(self, root: Path, see: Callable[[Call], Any]) -> None:
        self._root = root
        # Of a mount in another namespace the kernel says where it is there.
        self._mounted = re.sub(r"^/proc/\d+/root", "", str(root))
        self._device = root.stat().st_dev
        self._see = see

    def by_path(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            last = arguments[1] if name in ("link", "rename", "replace") else arguments[0]
            if not self._is_ours(last):
                return real(*arguments, **options)
            return self._see(
                Call(
                    name, self._root, self._named(last), False, lambda: real(*arguments, **options)
                )
            )

        return call

    def by_descriptor(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(descriptor: int, *arguments: Any) -> Any:
            status = os.fstat(descriptor)
            if status.st_dev != self._device:
                return real(descriptor, *arguments)
            half = None
            if name in _WRITES:
                data = memoryview(arguments[0]).cast("B")
                half = lambda: real(descriptor, data[: len(data) // 2], *arguments[1:])  # noqa: E731
            return self._see(
                Call(
                    name,
                    self._root,
                    self._opened(descriptor),
                    stat.S_ISDIR(status.st_mode),
                    lambda: real(descriptor, *arguments),
                    half,
                )
            )

        return call

    def posix_fadvise(self) -> Callable[..., None]:
        real = os.posix_fadvise

        def call(descriptor: int, *arguments: int) -> None:
            if os.fstat(descriptor).st_dev != self._device:
                real(descriptor, *arguments)

        return call

    def os_open(self) -> Callable[..., int]:
        real = os.open

        def call(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if not (flags & os.O_CREAT and self._is_ours(path)):
                return real(path, flags, *arguments, **options)
            return int(
                self._see(self._opening(path, lambda: real(path, flags, *arguments, **options)))
            )

        return call

    def io_open(self) -> Callable[..., Any]:
        real = io.open

        def call(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not (set(mode) & set("wxa+") and self._is_ours(path)):
                return real(path, mode, *arguments, **options)
            return self._see(self._opening(path, lambda: real(path, mode, *arguments, **options)))

        return call

    def _opening(self, path: Any, make: Callable[[], Any]) -> Call:
        return Call("open", self._root, self._named(path), False, make)

    def _is_ours(self, path: Any) -> bool:
        return not isinstance(path, int) and os.fspath(path).startswith(str(self._root))

    def _named(self, path: Any) -> Path:
        return Path(os.path.relpath(path, self._root))

    def _opened(self, descriptor: int) -> Path:
        return Path(os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), self._mounted))
