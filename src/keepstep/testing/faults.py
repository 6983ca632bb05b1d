"""What can go wrong between a client and its S3 server, and what that does to a body."""

from dataclasses import dataclass

_SLICES_PER_SECOND = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with ``status`` and an S3 error document of ``code``.

    The server never sees the request unless ``is_executed``; then its own reply is thrown away.
    With status 200 it is what AWS does when it fails to complete a multipart upload.
    """

    status: int
    code: str
    is_executed: bool = False


SLOW_DOWN = Answer(503, "SlowDown")
INTERNAL_ERROR = Answer(500, "InternalError")
ERROR_IN_OK = Answer(200, "InternalError")
ACCESS_DENIED = Answer(403, "AccessDenied")
EXPIRED_TOKEN = Answer(400, "ExpiredToken")
NO_SUCH_BUCKET = Answer(404, "NoSuchBucket")


@dataclass(frozen=True, slots=True)
class ResetRequest:
    """Reset the connection; the server never sees the request."""


@dataclass(frozen=True, slots=True)
class TearUpload:
    """Pass on ``after_bytes`` of the request's body, all but its last at most; drop both sides."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class LoseReply:
    """Let the server execute the request; reset instead of its reply.

    ``hang_seconds`` of silence come first, or fewer if the client gives up: more than the client's
    read timeout makes it time out.
    """

    hang_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ResetReply:
    """Reset the connection after ``after_bytes`` of the reply's body, all but its last at most."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class TruncateReply:
    """End the connection in good order after ``after_bytes`` of the reply's body, as above."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class FlipByte:
    """Invert the byte at ``offset`` of the reply's body, its last byte at most."""

    offset: int = 0


@dataclass(frozen=True, slots=True)
class SlowBody:
    """Pass on the request's body and the reply's at this pace."""

    bytes_per_second: int


Fault = (
    Answer
    | ResetRequest
    | TearUpload
    | LoseReply
    | ResetReply
    | TruncateReply
    | FlipByte
    | SlowBody
)


@dataclass(frozen=True, slots=True)
class BodyEffect:
    """What happens to a body on its way."""

    cut_at: int | None = None
    flip_at: int | None = None
    bytes_per_second: int | None = None

    def alter(self, data: bytes, offset: int) -> bytes:
        """What is passed on of ``data``, the body's bytes from ``offset`` on."""
        if self.flip_at is not None and offset <= self.flip_at < offset + len(data):
            place = self.flip_at - offset
            data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        return data if self.cut_at is None else data[: max(self.cut_at - offset, 0)]

    def is_cut_before(self, offset: int) -> bool:
        """Nothing from ``offset`` on is passed on."""
        return self.cut_at is not None and offset >= self.cut_at

    def slices(self, data: bytes) -> list[bytes]:
        """``data`` in portions small enough for an even pace."""
        if self.bytes_per_second is None:
            return [data]
        size = max(self.bytes_per_second // _SLICES_PER_SECOND, 1)
        return [data[start : start + size] for start in range(0, len(data), size)]


def effect_on_upload(fault: Fault | None, length_bytes: int | None) -> BodyEffect:
    """What the fault does to a request's body of this length, ``None`` where it is chunked."""
    match fault:
        case TearUpload(after_bytes):
            return BodyEffect(cut_at=_within(after_bytes, length_bytes))
        case SlowBody(bytes_per_second):
            return BodyEffect(bytes_per_second=bytes_per_second)
        case _:
            return BodyEffect()


def effect_on_reply(fault: Fault | None, length_bytes: int | None) -> BodyEffect:
    """What the fault does to a reply's body of this length, ``None`` where it is not announced."""
    match fault:
        case ResetReply(after_bytes) | TruncateReply(after_bytes):
            return BodyEffect(cut_at=_within(after_bytes, length_bytes))
        case FlipByte(offset):
            return BodyEffect(flip_at=_within(offset, length_bytes))
        case SlowBody(bytes_per_second):
            return BodyEffect(bytes_per_second=bytes_per_second)
        case _:
            return BodyEffect()


def _within(offset: int, length_bytes: int | None) -> int:
    return offset if length_bytes is None else min(offset, max(length_bytes - 1, 0))
