"""Documents from text and JSONL files, wherever fsspec finds them, and where each was found."""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from typing import IO, Any

from fsspec.compression import compr
from fsspec.core import url_to_fs
from fsspec.utils import infer_compression

from keepstep.errors import ConfigError, KeepstepError
from keepstep.storage.fsspec_errors import translated

_JSON_LINES = (".jsonl", ".ndjson", ".json")
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Input:
    """One file to read."""

    files: Any
    """The fsspec file system it lies in."""
    path: str
    size_bytes: int
    """As stored; 0 if the file system does not know."""

    @property
    def is_json_lines(self) -> bool:
        """Whether each line is a JSON object, rather than the whole file a document."""
        suffix = f".{self.path.rpartition('.')[2]}"
        is_packed = infer_compression(self.path) is not None
        return (self.path.removesuffix(suffix) if is_packed else self.path).endswith(_JSON_LINES)


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on: a boundary between pieces."""

    input: int = 0
    offset: int = 0
    """In bytes of the unpacked file."""
    line: int = 0
    """Lines before it."""
    is_in_document: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of one."""

    text: str
    begins: bool
    """Whether a document begins with it."""
    ends: bool
    """Whether a document ends with it."""
    after: Place


def find_inputs(urls: Sequence[str]) -> list[Input]:
    """The files that paths and URLs name: files, patterns, or directories with all below them.

    Hidden files of directories are left out.

    *Raises:* ``ConfigError`` naming what does not exist or cannot be reached.
    """
    found = [file for url in urls for file in _find(url)]
    if not found:
        raise ConfigError("no input: name at least one file")
    return found


def read_pieces(
    inputs: Sequence[Input], start: Place, *, text_field: str, on_read: Callable[[int], None]
) -> Iterator[Piece]:
    """The documents of all inputs in order, from a place on; long text files in several pieces.

    Pieces do not depend on where reading started.

    Args:
        text_field: What holds the text in a JSON object.
        on_read: Told how many bytes more have been read, as stored.

    *Raises:* ``ConfigError`` naming file and line of what cannot be read.
    """
    on_read(sum(source.size_bytes for source in inputs[: start.input]))
    for number in range(start.input, len(inputs)):
        place = start if number == start.input else Place(number)
        source = inputs[number]
        with _opened(source) as (file, stored):
            file.seek(place.offset)
            pieces = (
                _json_lines(file, source.path, place, text_field)
                if source.is_json_lines
                else _text(file, source.path, place)
            )
            told = 0
            for piece in pieces:
                reached = stored.tell()
                on_read(reached - told)
                told = reached
                yield piece


def _find(url: str) -> list[Input]:
    with _translating(url):
        files, path = url_to_fs(url)
        if files.isdir(path):
            below = sorted(files.find(path))
            paths = [name for name in below if not name.rpartition("/")[2].startswith(".")]
        elif files.exists(path):
            paths = [path]
        else:
            paths = [match for match in sorted(files.glob(path)) if files.isfile(match)]
        if not paths:
            raise ConfigError(f"{_shown(url)}: no such file")
        return [Input(files, path, int(files.size(path) or 0)) for path in paths]


@contextmanager
def _opened(source: Input) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file as it is when unpacked, and as it is stored."""
    with _translating(source.path), source.files.open(source.path, "rb") as stored:
        packing = infer_compression(source.path)
        if packing is None:
            yield stored, stored
            return
        with _unpacking(source.path), compr[packing](stored, mode="rb") as unpacked:
            yield unpacked, stored


def _json_lines(file: IO[bytes], path: str, place: Place, text_field: str) -> Iterator[Piece]:
    offset, number = place.offset, place.line
    while line := file.readline():
        offset += len(line)
        number += 1
        if line.strip():
            text = _text_of(line, f"{path} line {number}", text_field)
            yield Piece(text, begins=True, ends=True, after=Place(place.input, offset, number))


def _text_of(line: bytes, where: str, text_field: str) -> str:
    try:
        found = json.loads(line)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 ({error}): convert the file") from error
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error}): correct or remove the line") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: a JSON {type(found).__name__}, where an object should be")
    text = found.get(text_field)
    if not isinstance(text, str):
        what = f"is a {type(text).__name__}" if text_field in found else "is missing"
        names = ", ".join(sorted(found)) or "none"
        raise ConfigError(
            f"{where}: the field {text_field!r} {what}, of the fields {names}: name the one with "
            "the text by --text-field"
        )
    return _checked(text, where)


def _checked(text: str, where: str) -> str:
    """JSON can spell halves of characters that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: half a surrogate pair ({error}): correct the line") from error
    return text


def _text(file: IO[bytes], path: str, place: Place) -> Iterator[Piece]:
    offset, number, is_inside = place.offset, place.line, place.is_in_document
    while lines := file.readlines(_PIECE_BYTES):
        text = _decoded(lines, path, number)
        offset += sum(map(len, lines))
        number += len(lines)
        after = Place(place.input, offset, number, is_in_document=True)
        yield Piece(text, begins=not is_inside, ends=False, after=after)
        is_inside = True
    if is_inside:
        yield Piece("", begins=False, ends=True, after=Place(place.input + 1))


def _decoded(lines: list[bytes], path: str, lines_before: int) -> str:
    try:
        return b"".join(lines).decode()
    except UnicodeDecodeError:
        for number, line in enumerate(lines, start=lines_before + 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                where = f"{path} line {number}"
                raise ConfigError(f"{where}: not UTF-8 ({error}): convert the file") from error
        raise


@contextmanager
def _translating(url: str) -> Iterator[None]:
    where = _shown(url)
    try:
        yield
    except KeepstepError:
        raise
    except (ImportError, ValueError) as error:  # fsspec says what to install, or knows no such URL
        raise ConfigError(f"{where}: {error}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: no such file") from error
    except Exception as error:  # whatever a backend of fsspec raises
        raise translated(error, "read", where, where=where) from error


@contextmanager
def _unpacking(path: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, LZMAError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file could not be read; what is read and makes no sense has no number
        raise ConfigError(f"{path}: cannot be unpacked ({error}): fetch it again") from error


def _shown(url: str) -> str:
    """Without user and password, and without a query, which may hold a token."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
