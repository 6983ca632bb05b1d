"""A server in this process that answers a client of S3 as each test says."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from keepstep.storage.retrying import RetryPolicy
from keepstep.storage.s3 import S3Storage

ATTEMPTS = 3


@dataclass(frozen=True)
class Request:
    command: str
    access_key: str


class Asked(BaseHTTPRequestHandler):
    """A connection's request of now. Its answer is whatever ``answer`` sends."""

    protocol_version = "HTTP/1.1"
    answer: Callable[["Asked"], None]
    log: list[Request]

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str = "it says") -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.reply(status, text.encode())

    def access_key(self) -> str:
        return self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.log.append(Request(self.command, self.access_key()))
        type(self).answer(self)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, *args: object) -> None:
        """Not shown."""


@contextmanager
def serving(answer: Callable[[Asked], None]) -> Iterator[tuple[str, list[Request]]]:
    """A server; yields its address and the requests that have come."""
    log: list[Request] = []
    handler = type("Handler", (Asked,), {"answer": staticmethod(answer), "log": log})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", log
        finally:
            server.shutdown()
            thread.join()


def succeed(asked: Asked) -> None:
    asked.reply(200, ETag='"e"')


def open_s3(endpoint: str, aws: pytest.MonkeyPatch, *, is_exclusive: bool = True) -> S3Storage:
    """A store over S3 that tries each request :data:`ATTEMPTS` times."""
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    policy = RetryPolicy(attempts=ATTEMPTS, longest_wait_seconds=0.01)
    return S3Storage("bucket", "run", is_exclusive=is_exclusive, policy=policy)


def head(asked: Asked, size_bytes: int) -> None:
    asked.reply(200, bytes(size_bytes), **{"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"})
