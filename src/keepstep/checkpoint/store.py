"""The barrier's store, over c10d."""

import time
import zlib
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from keepstep.errors import CoordinationError

_LONGEST_NAP_SECONDS = 0.1

_PART_BYTES = 4 << 20
"""TCPStore's server closes the connection over a message of more than 8 MiB."""
_LARGE_BYTES = 64 << 10
"""Plans are much alike from tensor to tensor: from here on they are compressed."""

_PLAIN, _COMPRESSED, _SPLIT = b"=", b"z", b"#"


class C10dStore:
    """A connection of its own to the process group's store; a dictionary where there is no group.

    Values may be of any size. Whoever deletes a key has set it, or waited for it.

    *Ranks:* one object each. Nothing here is a collective.
    """

    def __init__(self, *, timeout_seconds: float) -> None:
        if dist.is_initialized():
            # A clone, because waiting on a connection keeps every other user of it waiting as well:
            # the process group's own watchdog is one. c10d offers no public way to its store.
            store: Any = _get_default_store().clone()  # type: ignore[attr-defined]  # not in torch's stubs
        else:
            store = dist.HashStore()  # type: ignore[attr-defined]  # not in torch's stubs
        store.set_timeout(timedelta(seconds=timeout_seconds))
        self._store = store
        self._parts: dict[str, int] = {}

    def set(self, key: str, value: bytes) -> None:
        packed = _packed(value)
        try:
            if len(packed) > _PART_BYTES:
                starts = range(0, len(packed), _PART_BYTES)
                self._parts[key] = len(starts)
                for part, start in enumerate(starts):
                    self._store.set(f"{key}/{part}", packed[start : start + _PART_BYTES])
                packed = _SPLIT + b"%d" % len(starts)
            self._store.set(key, packed)
        except dist.DistError as error:
            raise _lost(error) from error

    def wait(self, key: str, timeout_seconds: float) -> bytes | None:
        # Asked for in growing naps instead of one blocking call: that call hears no Ctrl-C, prints
        # a C++ warning when its time is over, and the naps delay an answer by a tenth at most.
        start = time.monotonic()
        try:
            while not self._store.check([key]):
                waited = time.monotonic() - start
                if waited >= timeout_seconds:
                    return None
                time.sleep(min(_LONGEST_NAP_SECONDS, 0.001 + waited / 10))
            packed = bytes(self._store.get(key))
            if packed[:1] == _SPLIT:
                self._parts[key] = int(packed[1:])
                parts = [self._store.get(f"{key}/{part}") for part in range(self._parts[key])]
                packed = b"".join(parts)
        except dist.DistError as error:
            raise _lost(error) from error
        return zlib.decompress(packed[1:]) if packed[:1] == _COMPRESSED else packed[1:]

    def delete(self, key: str) -> None:
        try:
            self._store.delete_key(key)
            for part in range(self._parts.pop(key, 0)):
                self._store.delete_key(f"{key}/{part}")
        except dist.DistError as error:
            raise _lost(error) from error


def _packed(value: bytes) -> bytes:
    if len(value) < _LARGE_BYTES:
        return _PLAIN + value
    return _COMPRESSED + zlib.compress(value, level=1)


def _lost(error: Exception) -> CoordinationError:
    return CoordinationError(f"the process group's store is gone: {error}")
