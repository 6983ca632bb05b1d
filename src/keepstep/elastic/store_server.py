"""The rendezvous store as a process of its own, on a machine that need not train."""

import signal
import threading
from collections.abc import Callable

from keepstep.errors import ConfigError, StorageUnavailable

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
        told.wait()
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

    *Blocks:* a few seconds. *Raises:* StorageUnavailable if none does.
    """
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
        connect(endpoint).add("keepstep/health", 1)
    except STORE_ERRORS as error:
        raise StorageUnavailable(
            f"no rendezvous store answers at {endpoint}: {first_line(error)}. "
            "Start one there with `keepstep store`"
        ) from error
