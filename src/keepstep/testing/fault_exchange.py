"""One client's connection through the proxy: requests forwarded, faults done."""

import asyncio
import socket
import struct
from asyncio import IncompleteReadError, StreamReader, StreamWriter, Task
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from keepstep.testing.fault_rules import RuleBook
from keepstep.testing.faults import (
    Answer,
    BodyEffect,
    Fault,
    LoseReply,
    ResetReply,
    ResetRequest,
    effect_on_reply,
    effect_on_upload,
)
from keepstep.testing.http_wire import (
    Head,
    Piece,
    ends_with_connection,
    read_head,
    reply_body,
    request_body,
)

_REST_OF_UPLOAD_SECONDS = 1.0
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Stream:
    """Both directions of one connection."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Drop it with RST, as a process that dies with unread data does."""
        with suppress(OSError):  # the other side may have closed it already
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO
            )
        self.writer.transport.abort()

    def close(self) -> None:
        """End it in good order, once what was sent is through."""
        self.writer.close()


class FaultyConnection:
    """Forwards one client's requests, one after the other, and does the faults they meet."""

    def __init__(
        self, client: Stream, connect: Callable[[], Awaitable[Stream]], rules: RuleBook
    ) -> None:
        self._client = client
        self._connect = connect
        self._rules = rules
        self._upstream: Stream | None = None

    async def serve(self) -> None:
        """Until either side or a fault ends the connection."""
        try:
            while await self._exchange():
                pass
            self._client.close()
        except (OSError, IncompleteReadError):
            # One side is gone in mid-message, or cannot be reached: so must the other be.
            self._client.reset()
        except BaseException:
            self._client.reset()
            raise
        finally:
            if self._upstream is not None:
                self._upstream.reset()

    async def _exchange(self) -> bool:
        """One request and its reply; whether the connection goes on."""
        head = await read_head(self._client.reader)
        if head is None:
            return False
        method, target, _ = head.first_line.split(" ", 2)
        fault = self._rules.judge(method, target, head.headers)
        match fault:
            case ResetRequest():
                raise ConnectionResetError
            case Answer(is_executed=False):
                return await self._answer_alone(head, method, fault)
            case _:
                return await self._forward(head, method, fault)

    async def _answer_alone(self, head: Head, method: str, answer: Answer) -> bool:
        # A client that waits for "100 Continue" sends its body or keeps it: nobody knows which.
        goes_on = "expect" not in head.headers
        if goes_on:
            await _relay(request_body(self._client.reader, head), None, BodyEffect())
        await self._client.send(error_reply(answer, method, goes_on=goes_on))
        return goes_on

    async def _forward(self, head: Head, method: str, fault: Fault | None) -> bool:
        upstream = await self._open_upstream()
        await upstream.send(head.raw)
        body = request_body(self._client.reader, head)
        upload = asyncio.create_task(
            _relay(body, upstream, effect_on_upload(fault, head.length_bytes))
        )
        try:
            reply = await self._await_reply(upstream, upload)
            goes_on = await self._pass_reply(upstream, reply, method, fault)
            if goes_on and not head.closes:
                # A reply may overtake the end of its request, or the request's body altogether:
                # then the rest of it belongs to nobody.
                await asyncio.wait({upload}, timeout=_REST_OF_UPLOAD_SECONDS)
                return upload.done()
            return False
        finally:
            await _end(upload)

    async def _await_reply(self, upstream: Stream, upload: "Task[bool]") -> Head:
        """The head of the final reply, which may come before the upload is through."""
        reading = asyncio.create_task(self._read_final_head(upstream))
        try:
            await asyncio.wait({upload, reading}, return_when=asyncio.FIRST_COMPLETED)
            if upload.done() and upload.result():
                raise ConnectionResetError
            return await reading
        finally:
            await _end(reading)

    async def _read_final_head(self, upstream: Stream) -> Head:
        """Interim replies, "100 Continue" above all, are passed on."""
        while True:
            head = await read_head(upstream.reader)
            if head is None:
                raise ConnectionResetError
            if head.status >= 200:
                return head
            await self._client.send(head.raw)

    async def _pass_reply(
        self, upstream: Stream, reply: Head, method: str, fault: Fault | None
    ) -> bool:
        body = reply_body(upstream.reader, reply, method)
        match fault:
            case LoseReply(hang_seconds):
                await _relay(body, None, BodyEffect())
                await self._hang(hang_seconds)
                raise ConnectionResetError
            case Answer():
                await _relay(body, None, BodyEffect())
                await self._client.send(error_reply(fault, method, goes_on=True))
                return True
            case _:
                await self._client.send(reply.raw)
                effect = effect_on_reply(fault, reply.length_bytes)
                is_cut = await _relay(body, self._client, effect)
        if is_cut and isinstance(fault, ResetReply):
            raise ConnectionResetError
        return not (is_cut or reply.closes or ends_with_connection(reply, method))

    async def _hang(self, seconds: float) -> None:
        """Say nothing; the client may give up sooner."""
        ending = asyncio.create_task(self._client.reader.read(1))
        await asyncio.wait({ending}, timeout=seconds)
        await _end(ending)

    async def _open_upstream(self) -> Stream:
        """The connection in use, or a new one where the server has ended it meanwhile."""
        if self._upstream is not None and self._upstream.reader.at_eof():
            self._upstream.reset()
            self._upstream = None
        if self._upstream is None:
            self._upstream = await self._connect()
        return self._upstream


def error_reply(answer: Answer, method: str, *, goes_on: bool) -> bytes:
    """A whole reply in S3's form."""
    document = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{answer.code}</Code><Message>Injected by the fault proxy.</Message>"
        "<RequestId>fault-proxy</RequestId></Error>"
    ).encode()
    head = (
        f"HTTP/1.1 {answer.status} {answer.code}\r\n"
        "Content-Type: application/xml\r\n"
        f"Content-Length: {len(document)}\r\n"
        f"Connection: {'keep-alive' if goes_on else 'close'}\r\n\r\n"
    ).encode()
    return head if method == "HEAD" else head + document


async def _relay(body: AsyncIterator[Piece], to: Stream | None, effect: BodyEffect) -> bool:
    """Pass a body on, or nowhere; whether the effect cut it off."""
    offset = 0
    if effect.is_cut_before(0):
        return True
    async for piece in body:
        if not piece.is_payload:
            await _send(to, piece.data)
            continue
        for part in effect.slices(effect.alter(piece.data, offset)):
            await _send(to, part)
            if effect.bytes_per_second is not None:
                await asyncio.sleep(len(part) / effect.bytes_per_second)
        offset += len(piece.data)
        if effect.is_cut_before(offset):
            return True
    return False


async def _send(to: Stream | None, data: bytes) -> None:
    if to is not None:
        await to.send(data)


async def _end(task: "Task[object]") -> None:
    """Cancel what is not done, and see its end: its failure has been told or does not matter."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
