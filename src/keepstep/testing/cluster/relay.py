"""A way from the network of the pods to a server of this machine."""

import asyncio
import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

_CHUNK_BYTES = 1 << 18


class Relay:
    """Whoever connects to ``address`` in that network namespace talks to ``target``.

    Bytes are handed on as they are: signed requests stay valid. Port 0: any free one.
    """

    def __init__(self, namespace: Path, address: str, port: int, target: tuple[str, int]) -> None:
        self._target = target
        with inside_network(namespace):
            self._listener = socket.create_server((address, port))
        self.address, self.port = self._listener.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._hand_on, sock=self._listener)
        )
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:  # the server is away: so is this one, for this caller
            writer.close()
            return
        try:
            await asyncio.gather(_copy(reader, back), _copy(there, writer))
        except asyncio.CancelledError:  # by our own end, which Python 3.11 would log as an error
            return
        finally:
            back.close()
            writer.close()


@contextmanager
def inside_network(namespace: Path) -> Iterator[None]:
    """Sockets that this thread makes meanwhile belong to that network namespace."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(namespace, os.O_RDONLY)
    try:
        _enter(other)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)
        os.close(other)


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # either side may go at any time; the other one is told by the end
        while chunk := await source.read(_CHUNK_BYTES):
            target.write(chunk)
            await target.drain()
        target.write_eof()
