"""HTTP/1.1 on the wire: heads, and bodies in pieces as they come."""

from asyncio import IncompleteReadError, StreamReader
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

PIECE_BYTES = 256 * 1024
_BODILESS = (204, 304)


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the fields of a message."""

    raw: bytes
    first_line: str
    headers: dict[str, str]
    """By lower-case name; of repeated ones the last."""

    @property
    def length_bytes(self) -> int | None:
        length = self.headers.get("content-length")
        return None if length is None else int(length)

    @property
    def is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower().endswith("chunked")

    @property
    def closes(self) -> bool:
        """No other message follows on this connection."""
        return self.headers.get("connection", "").lower() == "close"

    @property
    def status(self) -> int:
        """Of a reply."""
        return int(self.first_line.split()[1])


class Piece(NamedTuple):
    """Bytes of a body, or of the framing between them."""

    data: bytes
    is_payload: bool


async def read_head(reader: StreamReader) -> Head | None:
    """The next message's head; ``None`` where the peer has ended the connection instead.

    *Raises:* ``IncompleteReadError`` when it ended in mid-head.
    """
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first_line, *lines = raw.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines if line)
    return Head(raw, first_line, {name.strip().lower(): value.strip() for name, _, value in fields})


def request_body(reader: StreamReader, head: Head) -> AsyncIterator[Piece]:
    """The body that follows a request's head."""
    return _chunks(reader) if head.is_chunked else _exactly(reader, head.length_bytes or 0)


def reply_body(reader: StreamReader, head: Head, method: str) -> AsyncIterator[Piece]:
    """The body that follows the head of a reply to ``method``."""
    if method == "HEAD" or head.status in _BODILESS:
        return _exactly(reader, 0)
    if head.is_chunked:
        return _chunks(reader)
    if head.length_bytes is not None:
        return _exactly(reader, head.length_bytes)
    return _until_end(reader)


def ends_with_connection(head: Head, method: str) -> bool:
    """The reply's body has no other end than the connection's."""
    has_body = method != "HEAD" and head.status not in _BODILESS
    return has_body and not head.is_chunked and head.length_bytes is None


async def _exactly(reader: StreamReader, size_bytes: int) -> AsyncIterator[Piece]:
    left = size_bytes
    while left:
        data = await reader.read(min(left, PIECE_BYTES))
        if not data:
            raise IncompleteReadError(b"", left)
        left -= len(data)
        yield Piece(data, is_payload=True)


async def _chunks(reader: StreamReader) -> AsyncIterator[Piece]:
    while True:
        line = await reader.readuntil(b"\r\n")
        yield Piece(line, is_payload=False)
        size_bytes = int(line.split(b";")[0], 16)
        if size_bytes == 0:
            break
        async for piece in _exactly(reader, size_bytes):
            yield piece
        yield Piece(await reader.readexactly(2), is_payload=False)
    while True:  # trailers, up to the empty line
        line = await reader.readuntil(b"\r\n")
        yield Piece(line, is_payload=False)
        if line == b"\r\n":
            return


async def _until_end(reader: StreamReader) -> AsyncIterator[Piece]:
    while data := await reader.read(PIECE_BYTES):
        yield Piece(data, is_payload=True)
