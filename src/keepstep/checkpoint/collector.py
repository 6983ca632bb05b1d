"""Keeping the cyclic garbage collector out of work that makes much and leaves no garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Tens of thousands of objects are made at once and none is garbage: leave the cyclic garbage
    collector out of it, which would look through all of torch each time their number has grown.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
