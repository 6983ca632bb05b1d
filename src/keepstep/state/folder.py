"""A folder of files as state: what frameworks that write their own checkpoints leave behind.

Every file is one tensor of bytes, mapped from the file and into it. So a folder is saved, checked,
divided among ranks and read back as tensors are, and stock DCP reads it too.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from awscrt.checksums import crc32c

from keepstep.errors import ConfigError, CorruptCheckpointError

FILES = "files"
"""Entries below this name are files of a folder."""

_PIECE_BYTES = 8 << 20

ContentPath = tuple[str | int, ...]
TensorSpec = tuple[tuple[int, ...], torch.dtype]
Digests = Mapping[str, tuple[int, int]]
"""Size and CRC32C of files, by name."""


class FolderToSave:
    """The files below a directory. They must not change while they are saved.

    *Ranks:* all; ranks that see a file of the same name must see the same bytes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._paths = {
            str(PurePosixPath(path.relative_to(directory))): path
            for path in sorted(directory.rglob("*"))
            if not path.is_dir()
        }
        if special := [name for name, path in self._paths.items() if not path.is_file()]:
            raise ConfigError(f"{directory / special[0]} is no regular file, and cannot be saved")

    def digests(self) -> Digests:
        """Of every file."""
        return {name: _size_and_crc(path) for name, path in self._paths.items()}

    def save_dict(self) -> dict[str, Any]:
        """The files' bytes, mapped."""
        return {FILES: {name: _mapped(path) for name, path in self._paths.items()}}

    def buffer_names(self) -> set[str]:
        """None that only the coordinator's counts of."""
        return set()

    def guarded(self) -> Callable[[str], bool]:
        """No file waits for an optimizer step: whoever wrote them may go on at any time."""
        return lambda _: False


class FolderToLoad:
    """A directory that files are loaded into; it must be new.

    *Ranks:* all. One rank of each node writes, so that every node gets all files.
    """

    def __init__(self, directory: Path, *, is_writer: bool) -> None:
        self.directory = directory
        self._is_writer = is_writer
        self._names: list[str] = []

    def steady(self) -> AbstractContextManager[None]:
        """There are no names to look up."""
        return nullcontext()

    def expected(self) -> dict[ContentPath, TensorSpec | None]:
        """Nothing in particular."""
        return {}

    def optimizer_groups(self) -> dict[str, list[frozenset[str]]]:
        """There are no optimizers."""
        return {}

    def optimizer_options(self) -> dict[str, frozenset[str]]:
        """There are no optimizers."""
        return {}

    def optimizer_owners(self) -> dict[str, str]:
        """There are no optimizers."""
        return {}

    def tracks(self, name: str) -> bool:
        """Files are."""
        return name == FILES

    def tracks_module(self, name: str) -> bool:  # noqa: ARG002  # whatever its name
        """There are no modules."""
        return False

    def accepted(self, present: Mapping[ContentPath, TensorSpec | None]) -> set[ContentPath]:
        """Files; anything else shows as unexpected."""
        return {path for path in present if path[0] == FILES}

    def template(
        self,
        contents: Mapping[ContentPath, TensorSpec | None],
        *,
        with_rng: bool,  # noqa: ARG002  # there are no generators
    ) -> dict[str, Any]:
        """New files of the right size, mapped. *Raises:* ``CorruptCheckpointError``."""
        self._names = [str(path[1]) for path in contents]
        if not self._is_writer:
            return {}
        shutil.rmtree(self.directory, ignore_errors=True)
        for path, spec in contents.items():
            size = spec[0][0] if spec else 0
            _create(self._place(str(path[1])), size)
        return {FILES: {name: _mapped(self._place(name), writable=True) for name in self._names}}

    def load_dict(self, loaded: Mapping[str, Any]) -> None:
        """The bytes are in the files already."""

    def common_dict(self) -> dict[str, Any]:
        """What is in the files now, mapped."""
        return {FILES: {name: _mapped(self._place(name)) for name in self._names}}

    def check_restored(self, loaded: Mapping[str, Any], *, with_rng: bool) -> None:
        """There is nothing but files, which are checked as tensors are."""

    def load_rng(self, loaded: Mapping[str, Any]) -> None:
        """There are no generators."""

    def derive_rng(self, step: int) -> None:
        """There are no generators."""

    def move(self, place: Path) -> None:
        """Give the directory its name, in the place of one that has it already."""
        if self._is_writer:
            shutil.rmtree(place, ignore_errors=True)
            self.directory.rename(place)

    def _place(self, name: str) -> Path:
        """Where a file goes: below the directory, whatever a checkpoint says."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise CorruptCheckpointError(f"a file of the checkpoint is called {name!r}")
        return self.directory.joinpath(*parts)


def look_into(directory: Path) -> tuple[FolderToSave, Digests]:
    """A folder and what is in its files. *Raises:* ``ConfigError`` naming a file."""
    try:
        folder = FolderToSave(directory)
        return folder, folder.digests()
    except OSError as error:
        raise ConfigError(f"{directory} cannot be saved: {error}") from error


def check_same_files(by_rank: list[Digests]) -> None:
    """Compare what ranks see. *Raises:* ``ConfigError`` naming a file that two see differently."""
    seen: dict[str, tuple[int, tuple[int, int]]] = {}
    for rank, files in enumerate(by_rank):
        for name, digest in files.items():
            first, known = seen.setdefault(name, (rank, digest))
            if known != digest:
                raise ConfigError(
                    f"{name} is another file on rank {first} than on rank {rank}: give each node's "
                    "files names of their own, or save from a directory that all nodes share"
                )
    if not seen:
        raise ConfigError("the folder to be saved holds no files on any rank")


def _mapped(path: Path, *, writable: bool = False) -> torch.Tensor:
    """Shape (bytes,), uint8."""
    size = path.stat().st_size
    if size == 0:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.from_file(str(path), shared=writable, size=size, dtype=torch.uint8)


def _create(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows here, not as a SIGBUS


def _size_and_crc(path: Path) -> tuple[int, int]:
    crc = size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            crc, size = crc32c(piece, crc), size + len(piece)
    return size, crc
