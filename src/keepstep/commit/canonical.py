"""Canonical JSON: one value, one sequence of bytes; and documents that carry their own digest."""

import json
from collections.abc import Mapping
from typing import Any

from keepstep.commit.blocks import sha256_digest
from keepstep.errors import CorruptCheckpointError, UnsupportedFormatError

FORMAT_VERSION = 1
"""Of everything below a run's URI. Readers refuse newer ones."""


def canonical_bytes(value: Any, *, is_compact: bool = False) -> bytes:
    """Sorted keys, ASCII, one trailing newline; NaN is refused. Compact, or indented for people."""
    style: dict[str, Any] = {"separators": (",", ":")} if is_compact else {"indent": 1}
    return (json.dumps(value, sort_keys=True, allow_nan=False, **style) + "\n").encode()


def seal(document: dict[str, Any], *, is_compact: bool = False) -> bytes:
    """A document with its format version and its own digest."""
    body = {**document, "format": FORMAT_VERSION}
    data = canonical_bytes(body, is_compact=is_compact)
    digest = sha256_digest(data)
    if is_compact:
        return canonical_bytes({**body, "digest": digest}, is_compact=True)
    # Nothing is encoded twice: only keys of the document itself follow a line break and one space.
    following = b'\n "%s":' % min(key for key in body if key > "digest").encode()
    before, _, after = data.partition(following)
    return before + b"\n" + _digest_line(digest, is_compact=False)[:-1] + following + after


def seal_parts(parts: Mapping[str, bytes]) -> bytes:
    """:func:`seal`, compact, of a document whose values are encoded already."""
    body = {**parts, "format": b"%d" % FORMAT_VERSION}
    digest = sha256_digest(_joined(body))
    return _joined({**body, "digest": json.dumps(digest).encode()})


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
    text = json.dumps(digest)
    return (f'"digest":{text},' if is_compact else f' "digest": {text},\n').encode()


def _joined(parts: Mapping[str, bytes]) -> bytes:
    items = (json.dumps(key).encode() + b":" + parts[key] for key in sorted(parts))
    return b"{" + b",".join(items) + b"}\n"
