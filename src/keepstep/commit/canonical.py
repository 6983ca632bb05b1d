"""Canonical JSON: one value, one sequence of bytes; and documents that carry their own digest."""

import json
from collections.abc import Mapping
from typing import Any

from keepstep.commit.blocks import sha256_digest
from keepstep.errors import CorruptCheckpointError, UnsupportedFormatError

FORMAT_VERSION = 1
"""Of everything below a run's URI. Readers refuse newer ones."""


_for_people = json.JSONEncoder(sort_keys=True, allow_nan=False).encode
_compact = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":")).encode


def compact_bytes(value: Any) -> bytes:
    """Sorted keys, ASCII, no white space; NaN is refused."""
    return _compact(value).encode()


def seal(document: Mapping[str, Any]) -> bytes:
    """A document for people, with its format version and its own digest.

    Sorted keys, ASCII, one member a line, and if it is a list one item a line; NaN is refused.
    """
    parts = {key: _lines(value) for key, value in document.items()}
    return _sealed(parts, is_compact=False)


def seal_parts(parts: Mapping[str, bytes]) -> bytes:
    """The same without white space, of a document whose values are encoded already."""
    return _sealed(parts, is_compact=True)


def unseal(data: bytes, key: str) -> dict[str, Any]:
    """The document, checked.

    *Raises:* ``CorruptCheckpointError`` for anything that is not what :func:`seal` makes, in any
    format; ``UnsupportedFormatError`` for a newer format.
    """
    try:
        document: dict[str, Any] = json.loads(data)
        version, digest = document.pop("format"), document.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptCheckpointError(f"{key} is not a keepstep document", key=key) from error
    # The digest is of the very bytes around it: JSON does not see white space.
    before, _, after = data.partition(_digest_line(digest, is_compact=not data.startswith(b"{\n")))
    if digest != sha256_digest(before + after):
        raise CorruptCheckpointError(f"{key} does not match its own digest", key=key)
    if version > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{key} has format {version}; this keepstep reads up to {FORMAT_VERSION}: "
            "upgrade keepstep",
            key=key,
        )
    return document


def _digest_line(digest: object, *, is_compact: bool) -> bytes:
    """What :func:`seal` adds to the document without its digest."""
    member = _member("digest", json.dumps(digest).encode(), is_compact=is_compact)
    return member + _between(is_compact=is_compact)


def _lines(value: Any) -> bytes:
    if not isinstance(value, list) or not value:
        return _for_people(value).encode()
    items = ",\n  ".join(map(_for_people, value))
    return f"[\n  {items}\n ]".encode()


def _sealed(parts: Mapping[str, bytes], *, is_compact: bool) -> bytes:
    body = {**parts, "format": b"%d" % FORMAT_VERSION}
    digest = sha256_digest(_joined(body, is_compact=is_compact))
    return _joined({**body, "digest": b'"%s"' % digest.encode()}, is_compact=is_compact)


def _joined(parts: Mapping[str, bytes], *, is_compact: bool) -> bytes:
    members = (_member(key, parts[key], is_compact=is_compact) for key in sorted(parts))
    joined = _between(is_compact=is_compact).join(members)
    return b"{%s}\n" % joined if is_compact else b"{\n%s\n}\n" % joined


def _member(key: str, value: bytes, *, is_compact: bool) -> bytes:
    return (b'"%s":%s' if is_compact else b' "%s": %s') % (key.encode(), value)


def _between(*, is_compact: bool) -> bytes:
    return b"," if is_compact else b",\n"
