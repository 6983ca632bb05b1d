"""The default token file: the Python standard library, mapped by any number of processes.

::

    <directory>/<name>-<digest>.tokens.bin     the tokens
    <directory>/<name>.tokens.json             what they are; created last, exclusively

The sidecar makes the file real. Of several processes that prepare at once, on machines whose
Pythons may differ, the first sidecar wins and the others read its tokens.
"""

import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from numpy.typing import NDArray

from keepstep.errors import ConfigError

STDLIB = "stdlib"
_SEPARATOR = b"\0"  # between documents; Python source cannot contain it
TRAIN_PERCENT = 95
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib"})


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """The sidecar: what a token file holds."""

    file: str
    dtype: str
    vocabulary: int
    length: int
    """Tokens in all."""
    split: int
    """Tokens before this position are for training, the rest for validation."""
    sha256: str
    source: str
    python: str
    """Version of the Python whose library was read: its text differs between patch releases."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """An open token file: both parts, mapped read-only."""

    info: TokenInfo
    train: NDArray[np.uint8]
    validation: NDArray[np.uint8]


def prepare_stdlib(directory: Path) -> Path:
    """Build the token file of the Python standard library's own source, once; return its sidecar.

    Documents in sorted order of their path, bytes as tokens. Tests, idlelib and installed packages
    are left out.

    *Ranks:* local; safe if several processes do it at once. *Durability:* the sidecar appears only
    after the tokens are on disk.
    """
    sidecar = directory / f"{STDLIB}.tokens.json"
    if sidecar.exists():
        return sidecar
    directory.mkdir(parents=True, exist_ok=True)
    tokens = b"".join(_stdlib_documents(Path(sysconfig.get_path("stdlib"))))
    digest = sha256(tokens).hexdigest()
    info = TokenInfo(
        file=f"{STDLIB}-{digest[:12]}.tokens.bin",
        dtype="uint8",
        vocabulary=256,
        length=len(tokens),
        split=len(tokens) * TRAIN_PERCENT // 100,
        sha256=digest,
        source="the Python standard library's .py files",
        python=platform.python_version(),
    )
    _publish(directory / info.file, tokens)
    _publish(sidecar, json.dumps(asdict(info), indent=2, sort_keys=True).encode() + b"\n")
    return sidecar


def open_tokens(sidecar: Path) -> TokenFile:
    """Map a token file and check length and SHA-256 against its sidecar.

    *Raises:* ConfigError if there is none, or the tokens are not what the sidecar says.
    """
    info = _read_sidecar(sidecar)
    path = sidecar.parent / info.file
    try:
        tokens: NDArray[np.uint8] = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except (OSError, ValueError) as error:  # numpy: an empty file cannot be mapped
        raise ConfigError(f"{path}: cannot be read ({error}): {_rebuild(sidecar)}") from error
    if len(tokens) != info.length:
        raise ConfigError(
            f"{path}: {len(tokens)} tokens where {sidecar.name} says {info.length}: "
            f"{_rebuild(sidecar)}"
        )
    if sha256(tokens.data).hexdigest() != info.sha256:
        raise ConfigError(
            f"{path}: SHA-256 differs from that in {sidecar.name}: {_rebuild(sidecar)}"
        )
    return TokenFile(info=info, train=tokens[: info.split], validation=tokens[info.split :])


def _stdlib_documents(root: Path) -> Iterator[bytes]:
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            yield path.read_bytes() + _SEPARATOR


def _publish(path: Path, data: bytes) -> None:
    """Let ``path`` appear whole and durable; if somebody else was first, theirs stays."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as temporary:
        temporary.write(data)
        temporary.flush()
        os.fsync(temporary.fileno())
        Path(temporary.name).chmod(0o644)
        try:
            path.hardlink_to(temporary.name)
        except FileExistsError:
            return
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_sidecar(sidecar: Path) -> TokenInfo:
    try:
        info = TokenInfo(**json.loads(sidecar.read_bytes()))
    except FileNotFoundError as error:
        raise ConfigError(f"{sidecar}: no such token file: check data.path") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{sidecar}: not a token sidecar ({error})") from error
    if info.dtype != "uint8":
        raise ConfigError(f"{sidecar}: tokens of dtype {info.dtype}; only uint8 is supported")
    return info


def _rebuild(sidecar: Path) -> str:
    return f"delete {sidecar.name} and its .bin to build them again, or restore them from a copy"
