"""From what a person writes to a store."""

import re

from keepstep.errors import ConfigError
from keepstep.storage.base import Storage, is_key
from keepstep.storage.retrying import RetryPolicy

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")


def open_storage(
    uri: str, *, single_writer: bool = False, policy: RetryPolicy | None = None
) -> Storage:
    """The store a URI names: a path, ``file://`` and an absolute path, ``s3://bucket/prefix``, or
    what fsspec has a package for.

    Nothing is created or contacted yet.

    Args:
        single_writer: Create by looking first, where the store cannot create exclusively. Whoever
            says so vouches that no two jobs write there at a time.
        policy: How long requests to a remote store are repeated.

    *Raises:* ``ConfigError`` naming the scheme if there is no store for it.
    """
    match = _SCHEME.match(uri)
    if match is None and "::" in uri and "://" in uri:
        raise ConfigError(f"uri {uri!r} chains stores; write the URI of the last one alone")
    if match is None or match[1].lower() in ("file", "local"):
        path = uri if match is None else uri[match.end() :]
        if not path or (match is not None and not path.startswith("/")):
            raise ConfigError(
                f"uri {uri!r} names no directory; write a path or file:///absolute/path"
            )
        from keepstep.storage.local import LocalStorage

        return LocalStorage(path)
    if match[1].lower() in ("s3", "s3a"):
        return _s3(uri, uri[match.end() :], is_exclusive=not single_writer, policy=policy)
    from keepstep.storage.fsspec_opening import open_fsspec

    return open_fsspec(uri, single_writer=single_writer, policy=policy)


def _s3(uri: str, path: str, *, is_exclusive: bool, policy: RetryPolicy | None) -> Storage:
    from keepstep.storage.s3 import S3Storage

    bucket, _, prefix = path.partition("/")
    prefix = prefix.strip("/")
    if not bucket:
        raise ConfigError(f"uri {uri!r} names no bucket; write s3://bucket/prefix")
    if prefix and not is_key(prefix):
        raise ConfigError(
            f"uri {uri!r}: the prefix may hold letters, digits and ._- between single slashes"
        )
    return S3Storage(bucket, prefix, is_exclusive=is_exclusive, policy=policy)
