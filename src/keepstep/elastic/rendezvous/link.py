"""The roster and the heartbeats of one job, as keys in a TCPStore."""

import errno
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported without saying so
from torch.distributed.distributed_c10d import Store

from keepstep.elastic.rendezvous.roster import Roster

logger = logging.getLogger("keepstep.elastic")

STORE_ERRORS = (RuntimeError, ValueError, OSError)
"""What torch's stores raise, its own DistError being a RuntimeError."""

_CONNECT_SECONDS = 5.0
_BACKLOG = 4096  # all agents and workers may come at once


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Link:
    """One connection to the store. It is good until it raises, and then never again.

    *Raises:* each method one of ``STORE_ERRORS``. *Blocks:* without bound if the store's machine
    vanishes from the network: call it from a thread that may be given up.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._prefix = f"keepstep/rendezvous/{run_id}"
        self._roster_key = f"{self._prefix}/roster"

    def read(self) -> Roster | None:
        """The roster in the store; None if there is none."""
        if not self._store.check([self._roster_key]):
            return None
        text = self._store.get(self._roster_key).decode()
        try:
            return Roster.from_json(text)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self._roster_key} in the store is no roster of this keepstep ({error}): run the "
                "same version on all nodes, or another --rdzv-id"
            ) from error

    def replace(self, expected: Roster | None, wanted: Roster) -> bool:
        """Put ``wanted`` in the place of ``expected``; False if something else was there."""
        before = expected.to_json() if expected is not None else ""
        after = wanted.to_json()
        return bool(self._store.compare_set(self._roster_key, before, after).decode() == after)

    def beat(self, node: str) -> None:
        """Raise this node's counter."""
        self._store.add(self._beat_key(node), 1)

    def beats(self, nodes: Sequence[str]) -> dict[str, int]:
        """The counters of nodes; 0 for one that the store has never heard of."""
        keys = [self._beat_key(node) for node in nodes]
        if not keys:
            return {}
        if self._store.check(keys):  # else multi_get would wait for the missing ones
            values = [int(value) for value in self._store.multi_get(keys)]
        else:
            values = [self._store.add(key, 0) for key in keys]
        return dict(zip(nodes, values, strict=True))

    def _beat_key(self, node: str) -> str:
        return f"{self._prefix}/beats/{node}"


class Dialer:
    """Opens connections to the store at the endpoint; hosts it if that falls to this node."""

    def __init__(self, endpoint: Endpoint, run_id: str, *, is_host: bool | None) -> None:
        self._endpoint = endpoint
        self._run_id = run_id
        self._is_host = is_host
        self._server: Store | None = None

    def dial(self) -> Link:
        """*Blocks:* a few seconds at most. *Raises:* one of ``STORE_ERRORS``."""
        if self._server is None and self._should_host():
            self._server = self._host()
        if not is_answering(self._endpoint):
            raise ConnectionError(f"no store answers at {self._endpoint}")
        return Link(connect(self._endpoint), self._run_id)

    def _should_host(self) -> bool:
        if self._is_host is not None:
            return self._is_host
        return not is_answering(self._endpoint) and is_own_address(self._endpoint.host)

    def _host(self) -> Store | None:
        try:
            server = serve(self._endpoint.host, self._endpoint.port)
        except OSError as error:
            # Another agent on this machine was quicker.
            if error.errno == errno.EADDRINUSE and self._is_host is None:
                return None
            raise
        logger.warning("this node hosts the rendezvous store at %s", self._endpoint)
        return server


def connect(endpoint: Endpoint, timeout_seconds: float = _CONNECT_SECONDS) -> TCPStore:
    """A client of the store there. *Raises:* one of ``STORE_ERRORS``."""
    return TCPStore(
        endpoint.host,
        endpoint.port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_seconds),
    )


def serve(host: str, port: int, bind: str = "") -> TCPStore:
    """A store in this process, listening on one address of this machine, or on all.

    Args:
        host: By which this process reaches it.
        port: 0 for any free one.

    *Raises:* OSError if the address cannot be had.
    """
    listener = _listener(bind, port)
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=_CONNECT_SECONDS),
        master_listen_fd=listener.detach(),  # the store closes it
    )


def _listener(bind: str, port: int) -> socket.socket:
    if bind:
        family = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((bind, port), family=family, backlog=_BACKLOG)
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=_BACKLOG)


def first_line(error: Exception) -> str:
    """Of what torch's errors say; a stack of C++ frames follows it."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def is_answering(endpoint: Endpoint) -> bool:
    """Whether somebody listens there; asked first because torch retries with loud warnings."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def is_own_address(host: str) -> bool:
    """Whether a name or address is one of this machine's: nobody else's can be bound."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_can_bind(family, address) for family, _, _, _, address in found)


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(address)
        except OSError:
            return False
    return True
