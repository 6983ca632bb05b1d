"""The metadata services of three clouds, as far as notices of preemption go, on this machine.

Nothing is preempted before :meth:`MetadataService.preempt`. What they ask of a request (a token, a
header) is asked here too, since leaving it out is the usual mistake.
"""

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

MACHINE = "trainers_3"
"""What this machine is called."""
_TOKEN = "a-token"  # noqa: S105  # of a service that guards nothing


class MetadataService:
    """One server that answers for AWS, GCP and Azure, while the block runs."""

    def __init__(self) -> None:
        self._ends: datetime | None = None
        self._machine = MACHINE
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:  # the base class's name
                is_token = self.path == "/latest/api/token"
                has_ttl = "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
                self._answer(*((200, _TOKEN) if is_token and has_ttl else (400, "")))

            def do_GET(self) -> None:  # the base class's name
                self._answer(*service.answer(self.path, dict(self.headers)))

            def _answer(self, status: int, body: str) -> None:
                data = body.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def preempt(self, *, seconds: float, machine: str = MACHINE) -> None:
        """From now on say that a machine is taken away in so many seconds: on Azure, all hear."""
        self._ends = datetime.now(UTC) + timedelta(seconds=seconds)
        self._machine = machine

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body for a GET."""
        given = {name.lower(): value for name, value in headers.items()}
        if path.startswith("/latest/"):
            if given.get("x-aws-ec2-metadata-token") != _TOKEN:
                return 401, ""
            return self._aws(path)
        if path.startswith("/computeMetadata/"):
            return self._gcp(path) if given.get("metadata-flavor") == "Google" else (403, "")
        if path.startswith("/metadata/"):
            return self._azure(path) if given.get("metadata") == "true" else (400, "")
        return 404, ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _aws(self, path: str) -> tuple[int, str]:
        if self._ends is None or path != "/latest/meta-data/spot/instance-action":
            return 404, ""
        time = self._ends.strftime("%Y-%m-%dT%H:%M:%SZ")
        return 200, json.dumps({"action": "terminate", "time": time})

    def _gcp(self, path: str) -> tuple[int, str]:
        if path != "/computeMetadata/v1/instance/preempted":
            return 404, ""
        return 200, "FALSE" if self._ends is None else "TRUE"

    def _azure(self, path: str) -> tuple[int, str]:
        if path.startswith("/metadata/instance/compute/name"):
            return 200, MACHINE
        events = []
        if self._ends is not None:
            start = self._ends.strftime("%a, %d %b %Y %H:%M:%S GMT")
            events = [{"EventType": "Preempt", "NotBefore": start, "Resources": [self._machine]}]
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": events})
