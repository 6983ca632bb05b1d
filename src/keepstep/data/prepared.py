"""Prepared token files: how they lie in a directory, and how they are read.

::

    <directory>/tokens.json              what they are; created last
    <directory>/<shard>.tokens.bin       tokens, little-endian
    <directory>/<shard>.documents.bin    where documents begin in the shard, uint64

Shards follow each other without a gap: a document may go on in the next one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepstep.errors import ConfigError

INDEX = "tokens.json"
SETTINGS = "prepare.json"
"""What was prepared with; there before anything else."""
FORMAT = 1
_DTYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4"}
_READ_BYTES = 8 << 20

Tokens = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What the index says of one shard."""

    name: str
    tokens: int
    documents: int
    """That begin in it."""
    tokens_sha256: str
    documents_sha256: str

    @property
    def tokens_file(self) -> str:
        """Beside the index."""
        return f"{self.name}.tokens.bin"

    @property
    def documents_file(self) -> str:
        """Beside the index."""
        return f"{self.name}.documents.bin"


@dataclass(frozen=True, slots=True)
class TokenIndex:
    """What a directory of prepared tokens holds."""

    dtype: str
    vocabulary: int
    end_of_document: int
    """The token after each document."""
    tokens: int
    documents: int
    tokenizer: str
    """``bytes``, or the digest of the tokenizer file."""
    shards: tuple[ShardRecord, ...]

    def to_json(self) -> str:
        """The content of the index file."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n"

    @property
    def digest(self) -> str:
        """Names the tokens by content."""
        parts = [self.dtype, *(shard.tokens_sha256 for shard in self.shards)]
        return f"sha256:{sha256(' '.join(parts).encode()).hexdigest()}"

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Of the tokens in the files."""
        return np.dtype(_DTYPES[self.dtype])


def is_begun(directory: Path) -> bool:
    """Whether tokens were prepared there, or were to be."""
    return (directory / INDEX).exists() or (directory / SETTINGS).exists()


def dtype_for(vocabulary: int) -> str:
    """The smallest dtype that holds every token of a vocabulary."""
    return next(name for name in _DTYPES if vocabulary - 1 <= np.iinfo(name).max)


def read_index(directory: Path) -> TokenIndex:
    """*Raises:* ``ConfigError`` if the directory holds no prepared tokens, or of a newer format."""
    path = directory / INDEX
    try:
        content = json.loads(path.read_bytes())
        if (found := content.pop("format")) != FORMAT:
            raise ConfigError(f"{path}: format {found}; this keepstep reads {FORMAT}: upgrade it")
        return _index_from(content)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no prepared tokens here, or not yet: `keepstep data prepare` makes them"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not an index of prepared tokens ({error!r})") from error


def map_tokens(directory: Path, index: TokenIndex) -> list[Tokens]:
    """The tokens of each shard, mapped read-only.

    *Raises:* ``ConfigError`` naming a file that is missing or has another length.
    """
    return [
        _mapped(directory / shard.tokens_file, index.numpy_dtype, shard.tokens)
        for shard in index.shards
    ]


def document_starts(directory: Path, index: TokenIndex) -> NDArray[np.uint64]:
    """Where each document begins, counted in tokens from the first of all shards."""
    starts = [np.empty(0, dtype=np.uint64)]
    before = 0
    for shard in index.shards:
        found = _mapped(directory / shard.documents_file, np.dtype("<u8"), shard.documents)
        starts.append(found + np.uint64(before))
        before += shard.tokens
    return np.concatenate(starts)


def damaged_file(directory: Path, shard: ShardRecord) -> str | None:
    """Read a shard back; the name of its file whose bytes are not what was written, if any."""
    expected = {
        shard.tokens_file: shard.tokens_sha256,
        shard.documents_file: shard.documents_sha256,
    }
    for name, digest in expected.items():
        path = directory / name
        if not path.exists() or _file_digest(path) != digest:
            return name
    return None


def _index_from(content: Mapping[str, Any]) -> TokenIndex:
    shards = tuple(ShardRecord(**shard) for shard in content["shards"])
    index = TokenIndex(**{**content, "shards": shards})
    if index.dtype not in _DTYPES:
        raise ValueError(f"dtype {index.dtype}")
    return index


def _mapped(path: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    if length == 0:
        return np.empty(0, dtype=dtype)
    try:
        found: NDArray[Any] = np.asarray(np.memmap(path, dtype=dtype, mode="r"))
    except (OSError, ValueError) as error:  # numpy: an empty file, or a part of an item too many
        raise ConfigError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    if len(found) != length:
        raise ConfigError(
            f"{path}: holds {len(found)} entries where {INDEX} says {length}; {_REMEDY}"
        )
    return found


_REMEDY = "restore it from a copy, or delete the directory and prepare it again"


def _file_digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
