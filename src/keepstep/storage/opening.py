"""From what a person writes to a store."""

import re

from keepstep.errors import ConfigError
from keepstep.storage.base import Storage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")


def open_storage(uri: str) -> Storage:
    """The store a URI names: a path, or ``file://`` and an absolute path.

    Nothing is created or contacted yet.
    *Raises:* ``ConfigError`` naming the scheme if there is no store for it.
    """
    match = _SCHEME.match(uri)
    if match is None or match[1].lower() == "file":
        path = uri if match is None else uri[match.end() :]
        if not path or (match is not None and not path.startswith("/")):
            raise ConfigError(
                f"uri {uri!r} names no directory; write a path or file:///absolute/path"
            )
        from keepstep.storage.local import LocalStorage

        return LocalStorage(path)
    raise ConfigError(f"uri {uri!r}: no store for the scheme {match[1]!r}; use a path or file://")
