"""What a store can do, found out by doing it."""

import secrets
from contextlib import suppress

from keepstep.errors import ObjectExists, StorageError
from keepstep.storage.base import Storage

PROBE = "probe/"


def creates_exclusively(storage: Storage) -> bool:
    """Whether the second create of a name is refused, and the first one's bytes stand.

    *Raises:* ``StorageError`` if the store cannot be written or read at all.
    """
    if not storage.capabilities.exclusive_create:
        return False  # it would look first, which tells nothing of a race
    key = f"{PROBE}{secrets.token_hex(8)}"
    try:
        storage.create(key, b"first")
        storage.create(key, b"second")
    except ObjectExists:
        return storage.get(key) == b"first"
    except StorageError as error:
        if not _is_not_implemented(error):
            raise
    finally:
        with suppress(StorageError):
            storage.delete([key])
    return False


def _is_not_implemented(error: StorageError) -> bool:
    """Whether the store answered that it does not know conditional writes."""
    cause = error.__cause__
    answer = getattr(cause, "response", None)  # botocore's; it is not imported for this
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    return isinstance(cause, NotImplementedError) or metadata.get("HTTPStatusCode") == 501
