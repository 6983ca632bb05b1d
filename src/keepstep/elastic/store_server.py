"""The rendezvous store as a process of its own, on a machine that need not train."""

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from keepstep.errors import ConfigError, StorageUnavailable

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_STOPPING = (signal.SIGTERM, signal.SIGINT)


def serve_until_told(host: str, port: int, announce: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT, as PID 1 too, to which only handled signals get through.

    Args:
        host: The address to listen on; empty for all of this machine.
        announce: Called with the port once the store can be reached.

    *Ranks:* local; in the main thread. *Raises:* ConfigError if the address cannot be had.
    """
    told = threading.Event()

    def stop(*_: object) -> None:
        told.set()

    before = {number: signal.signal(number, stop) for number in _STOPPING}
    from keepstep.elastic.rendezvous.link import serve  # torch: seconds, in which to be stoppable

    try:
        store = serve(host or "localhost", port, bind=host)
        announce(store.port)
        while not told.wait(1.0):  # a signal that comes to a thread of torch wakes nobody
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host or 'any address'}, port {port}: {error.strerror or error}. "
            "Is a store running there already?"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ask(host: str, port: int) -> None:
    """Whether a rendezvous store answers there.

    *Blocks:* a few seconds; without bound while the store's process is stopped. *Raises:*
    StorageUnavailable if none does.
    """
    _reach(host, port)


def ask_whether_complete(run_id: str, host: str, port: int) -> bool:
    """Whether the job of this name has succeeded, as far as the store there knows.

    *Blocks:* and *Raises:* as ``ask``; StorageUnavailable also if the store's roster is not one
    that this keepstep can read.
    """
    from keepstep.elastic.rendezvous.link import STORE_ERRORS, Link, first_line

    store = _reach(host, port)
    try:
        roster = Link(store, run_id).read()
    except STORE_ERRORS as error:
        raise StorageUnavailable(
            f"the rendezvous store at {host or 'localhost'}:{port} does not say whether "
            f"{run_id} is complete: {first_line(error)}"
        ) from error
    return roster is not None and roster.is_complete


def _reach(host: str, port: int) -> "Store":
    from keepstep.elastic.rendezvous.link import (
        STORE_ERRORS,
        Endpoint,
        connect,
        first_line,
        is_answering,
    )

    endpoint = Endpoint(host or "localhost", port)
    try:
        if not is_answering(endpoint):
            raise ConnectionRefusedError("nobody listens there")
        store = connect(endpoint)
        store.add("keepstep/health", 1)
    except STORE_ERRORS as error:
        raise StorageUnavailable(
            f"no rendezvous store answers at {endpoint}: {first_line(error)}. "
            "Start one there with `keepstep store`"
        ) from error
    return store
