"""``/metrics``, ``/healthz`` and ``/readyz`` of a node, served by its agent."""

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from keepstep.errors import ConfigError
from keepstep.launch.health import NodeHealth
from keepstep.launch.metrics import NodeCollector, NodeState

logger = logging.getLogger("keepstep.launch")


@contextmanager
def serving(port: int, look: Callable[[], NodeState]) -> Iterator[int]:
    """Serve on all addresses while the block goes on; its value is the port, which 0 lets choose.

    *Raises:* ``ConfigError`` if the port cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(NodeCollector(look))
    try:
        server = _Server(("", port), _Handler)
    except OSError as error:
        raise ConfigError(
            f"--metrics-port {port}: {error.strerror}; choose another one (one a node is enough)"
        ) from error
    server.registry, server.look = registry, look
    thread = threading.Thread(target=server.serve_forever, name="keepstep-metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingTCPServer):
    """Not ``http.server``'s, which asks DNS for this machine's name."""

    allow_reuse_address = True
    daemon_threads = True
    registry: CollectorRegistry
    look: Callable[[], NodeState]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event; anything else must not be lost."""
        del request
        logger.debug("a request of %s has failed: %r", client_address, sys.exception())


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, encode(self.server.registry), content_type)
        elif path == "/healthz":
            health = self.server.look().health
            self._answer_health(health, is_well=health.is_healthy)
        elif path == "/readyz":
            health = self.server.look().health
            self._answer_health(health, is_well=health.is_ready)
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"/metrics, /healthz, /readyz\n", "text/plain")

    def _answer_health(self, health: NodeHealth, *, is_well: bool) -> None:
        status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
        body = json.dumps(health.document()).encode() + b"\n"
        self._answer(status, body, "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""
