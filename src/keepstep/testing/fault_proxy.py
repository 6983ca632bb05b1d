"""A proxy between S3 clients and their server that makes chosen requests go wrong.

with FaultProxy(server.endpoint) as proxy:
    rule = proxy.inject(LoseReply(), method="PUT", path="manifest", times=1)
    ...  # a client with proxy.endpoint
    assert rule.hits == 1
"""

import asyncio
import os
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from weakref import WeakSet

from keepstep.errors import InternalError
from keepstep.testing.fault_exchange import FaultyConnection, Stream
from keepstep.testing.fault_rules import Condition, Request, Rule, RuleBook
from keepstep.testing.faults import Fault
from keepstep.testing.http_wire import PIECE_BYTES
from keepstep.testing.ports import claim_ports

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""What leads a client of the standard chain to a server; the first counts."""

_BACKLOG = 128
_CALL_TIMEOUT_SECONDS = 10.0


class FaultProxy:
    """Listens on loopback and forwards to ``upstream``, an ``http://host:port``.

    Bodies stream through, connections stay alive, and the Host header is passed on, so that
    signatures stay valid. It works in a thread of its own; the methods may be called from any.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"the fault proxy forwards to http://host:port, not to {upstream!r}")
        self._upstream = (parts.hostname, parts.port or 80)
        self._rules = RuleBook()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._ports = claim_ports()
        self._listener = socket.socket()
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._sockets: WeakSet[socket.socket] = WeakSet()

    @property
    def endpoint(self) -> str:
        host, port = self._listener.getsockname()
        return f"http://{host}:{port}"

    @property
    def requests(self) -> list[Request]:
        """Every request since the start or the last ``clear``, with the fault it met."""
        return self._rules.requests

    def inject(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str | None = None,
        query: str | None = None,
        header: str | None = None,
        after: int = 0,
        times: int | None = 1,
    ) -> Rule:
        """Let requests that fit meet ``fault``: not the first ``after``, then ``times`` of them.

        ``path`` and ``query`` are parts of the target, ``header`` is a name or ``name: part``;
        ``times=None`` is forever. Of several rules the first that is not used up counts.
        """
        rule = Rule(fault, Condition(method, path, query, header), after, times)
        self._rules.add(rule)
        return rule

    def clear(self) -> None:
        """Forget all rules and the log of requests."""
        self._rules.clear()

    def start(self) -> Self:
        """Listen on a free port."""
        self._listener.setblocking(False)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A port of the kernel's choice would be lost, or lent to a client, while we are down.
        self._listener.bind(("127.0.0.1", self._ports.first))
        self._thread.start()
        _live.add(self)
        self.bring_up()
        return self

    def stop(self) -> None:
        """Close everything. The proxy does not start again."""
        self.take_down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            raise InternalError("the fault proxy's thread does not end")
        self._loop.close()
        self._listener.close()
        self._ports.release()

    def take_down(self) -> None:
        """Refuse connections and reset those that are open, as if the server had died."""
        self._call(self._take_down())

    def bring_up(self) -> None:
        """Accept connections, on the same port as ever."""
        self._call(self._bring_up())

    @contextmanager
    def down(self) -> Iterator[None]:
        """The server is gone while the block runs."""
        self.take_down()
        try:
            yield
        finally:
            self.bring_up()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def close_inherited_sockets(self) -> None:
        """In a forked child: a copy held here would keep the connection open past its reset."""
        self._listener.close()
        for inherited in list(self._sockets):
            inherited.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.result(_CALL_TIMEOUT_SECONDS)

    async def _bring_up(self) -> None:
        if self._accepting is None:
            self._listener.listen(_BACKLOG)
            self._accepting = asyncio.create_task(self._accept())

    async def _take_down(self) -> None:
        if self._accepting is None:
            return
        await _cancel({self._accepting})
        self._accepting = None
        # Linux: it listens no more, yet keeps the port; and that in every process with a copy.
        self._listener.shutdown(socket.SHUT_RDWR)
        await _cancel(self._connections)

    async def _accept(self) -> None:
        while True:
            accepted, _ = await self._loop.sock_accept(self._listener)
            connection = asyncio.create_task(self._serve(accepted))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        client = await self._stream(accepted)
        await FaultyConnection(client, self._connect, self._rules).serve()

    async def _connect(self) -> Stream:
        upstream = socket.socket()
        upstream.setblocking(False)
        try:
            await self._loop.sock_connect(upstream, self._upstream)
        except BaseException:
            upstream.close()
            raise
        return await self._stream(upstream)

    async def _stream(self, connected: socket.socket) -> Stream:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets.add(connected)
        return Stream(*await asyncio.open_connection(sock=connected, limit=PIECE_BYTES))


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    """End them all; the failure of one is a bug, and is raised."""
    ending = set(tasks)
    for task in ending:
        task.cancel()
    for result in await asyncio.gather(*ending, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


_live: WeakSet[FaultProxy] = WeakSet()


def _close_in_child() -> None:
    for proxy in list(_live):
        proxy.close_inherited_sockets()


os.register_at_fork(after_in_child=_close_in_child)
