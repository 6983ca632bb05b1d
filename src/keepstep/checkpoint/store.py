"""The barrier's store, over c10d."""

import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from keepstep.errors import CoordinationError

_LONGEST_NAP_SECONDS = 0.1


class C10dStore:
    """A connection of its own to the process group's store; a dictionary where there is no group.

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

    def set(self, key: str, value: bytes) -> None:
        try:
            self._store.set(key, value)
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
            return bytes(self._store.get(key))
        except dist.DistError as error:
            raise _lost(error) from error

    def delete(self, key: str) -> None:
        try:
            self._store.delete_key(key)
        except dist.DistError as error:
            raise _lost(error) from error


def _lost(error: Exception) -> CoordinationError:
    return CoordinationError(f"the process group's store is gone: {error}")
