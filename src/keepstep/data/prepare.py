"""Text to token files, shard by shard. What was cut off goes on with the shard it was at.

A shard that is done leaves a note beside it, which says where the next one goes on reading. The
notes make way for the index once all are done.
"""

import fcntl
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepstep.data.documents import Input, Piece, Place, read_pieces
from keepstep.data.prepared import (
    INDEX,
    SETTINGS,
    ShardRecord,
    TokenIndex,
    damaged_file,
    dtype_for,
    read_index,
)
from keepstep.data.tokenizers import Tokenizer
from keepstep.errors import ConfigError

SHARD_TOKENS = 100_000_000

_LOCK = ".prepare.lock"
_BATCH_CHARACTERS = 1 << 20
_BATCH_PIECES = 1024


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is in the directory now."""

    index: TokenIndex
    shards_before: int
    """That an earlier call had made."""


def prepare_tokens(
    inputs: Sequence[Input],
    directory: Path,
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    on_read: Callable[[int], None],
) -> Prepared:
    """Tokenize files into a directory; go on if an earlier call was cut off.

    The result does not depend on cuts. A finished directory is read back and checked.

    *Ranks:* local; one process at a time. *Durability:* files appear whole and synced under their
    names, the index last.

    Args:
        shard_tokens: After so many a shard is closed.
        on_read: Told how many bytes more of the inputs have been read.

    *Raises:* ``ConfigError`` naming file and line of bad input; or that the directory was prepared
    from something else, is damaged, or is being prepared by somebody else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        _check_settings(directory, inputs, tokenizer, text_field, shard_tokens)
        if (directory / INDEX).exists():
            return _checked(directory)
        notes = _finished(directory)
        shards = [shard for shard, _ in notes]
        place = notes[-1][1] if notes else Place()
        dtype = dtype_for(tokenizer.vocabulary)
        pieces = read_pieces(inputs, place, text_field=text_field, on_read=on_read)
        shards += _write_shards(
            _encoded(pieces, tokenizer),
            directory,
            first=len(shards),
            dtype=np.dtype(dtype).newbyteorder("<"),
            end=tokenizer.end_of_document,
            shard_tokens=shard_tokens,
        )
        index = TokenIndex(
            dtype=dtype,
            vocabulary=tokenizer.vocabulary,
            end_of_document=tokenizer.end_of_document,
            tokens=sum(shard.tokens for shard in shards),
            documents=sum(shard.documents for shard in shards),
            tokenizer=tokenizer.name,
            shards=tuple(shards),
        )
        if not index.tokens:
            raise ConfigError("the inputs hold no text: nothing was prepared")
        _write_whole(directory / INDEX, index.to_json().encode())
        for note in directory.glob("*.note.json"):
            note.unlink()
        return Prepared(index, shards_before=len(notes))


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{directory} is being prepared by another process: wait for it, or choose "
                "another --output"
            ) from error
        yield


def _check_settings(
    directory: Path,
    inputs: Sequence[Input],
    tokenizer: Tokenizer,
    text_field: str,
    shard_tokens: int,
) -> None:
    """What the tokens depend on is written down first, and must be the same when going on."""
    settings = {
        "inputs": [[file.path, file.size_bytes] for file in inputs],
        "tokenizer": tokenizer.name,
        "text_field": text_field,
        "shard_tokens": shard_tokens,
    }
    path = directory / SETTINGS
    if not path.exists():
        if (directory / INDEX).exists():
            raise ConfigError(f"{directory} holds other prepared tokens: choose another --output")
        _write_whole(path, (json.dumps(settings, indent=1) + "\n").encode())
        return
    try:
        before = json.loads(path.read_bytes())
        changed = [name for name, value in settings.items() if before[name] != value]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not what prepare wrote ({error!r}): delete it") from error
    if changed:
        raise ConfigError(
            f"{directory} was begun with other settings ({', '.join(changed)}; see {SETTINGS}): "
            "choose another --output, or delete it"
        )


def _checked(directory: Path) -> Prepared:
    index = read_index(directory)
    for shard in index.shards:
        if damaged := damaged_file(directory, shard):
            raise ConfigError(
                f"{directory / damaged} is not what was written: delete {INDEX}, and it is "
                "prepared again"
            )
    return Prepared(index, shards_before=len(index.shards))


def _finished(directory: Path) -> list[tuple[ShardRecord, Place]]:
    """The shards without a gap whose notes are there, and where reading goes on after each."""
    found: list[tuple[ShardRecord, Place]] = []
    while (note := directory / f"{_name(len(found))}.note.json").exists():
        content = json.loads(note.read_bytes())
        found.append((ShardRecord(**content["shard"]), Place(**content["after"])))
    return found


def _encoded(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[tuple[Piece, NDArray[Any]]]:
    """Pieces with their tokens; encoded many at once, which tokenizers do in parallel."""
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_PIECES:
            yield from zip(batch, tokenizer.encode([one.text for one in batch]), strict=True)
            batch, characters = [], 0
    yield from zip(batch, tokenizer.encode([one.text for one in batch]), strict=True)


def _write_shards(
    encoded: Iterator[tuple[Piece, NDArray[Any]]],
    directory: Path,
    *,
    first: int,
    dtype: np.dtype[Any],
    end: int,
    shard_tokens: int,
) -> Iterator[ShardRecord]:
    shard: _Shard | None = None
    number, after = first, Place()
    for piece, tokens in encoded:
        if shard is None:
            shard = _Shard(directory, _name(number), dtype)
        if piece.begins:
            shard.begin_document()
        shard.add(tokens)
        if piece.ends:
            shard.add(np.array([end]))
        after = piece.after
        if shard.tokens >= shard_tokens:
            yield shard.close(after)
            shard, number = None, number + 1
    if shard is not None:
        yield shard.close(after)


class _Shard:
    """A shard being written. Its files have temporary names until it is closed."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype[Any]) -> None:
        self._directory = directory
        self._name = name
        self._dtype = dtype
        self._part = directory / f".{name}.tokens.part"
        self._file = self._part.open("wb")
        self._digest = sha256()
        self._starts = array("Q")
        self.tokens = 0

    def begin_document(self) -> None:
        """One begins with the next token."""
        self._starts.append(self.tokens)

    def add(self, tokens: NDArray[Any]) -> None:
        """Write tokens, as many as fit into the dtype by the tokenizer's word."""
        content = tokens.astype(self._dtype).tobytes()
        self._file.write(content)
        self._digest.update(content)
        self.tokens += len(tokens)

    def close(self, after: Place) -> ShardRecord:
        """Let the files appear, then the note that they are whole."""
        starts = np.array(self._starts, dtype="<u8").tobytes()
        record = ShardRecord(
            name=self._name,
            tokens=self.tokens,
            documents=len(self._starts),
            tokens_sha256=self._digest.hexdigest(),
            documents_sha256=sha256(starts).hexdigest(),
        )
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self._part.replace(self._directory / record.tokens_file)
        _write_whole(self._directory / record.documents_file, starts)
        note = json.dumps({"shard": asdict(record), "after": asdict(after)})
        _write_whole(self._directory / f"{self._name}.note.json", note.encode())
        return record


def _name(number: int) -> str:
    return f"{number:05}"


def _write_whole(path: Path, content: bytes) -> None:
    """Let a file appear under its name with all of its content, synced with its directory."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
