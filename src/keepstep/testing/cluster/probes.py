"""Startup, readiness and liveness probes of a container."""

import subprocess
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from keepstep.testing.cluster.manifests import Manifest
from keepstep.testing.cluster.runtime import Started

_TCP = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()"
_HTTP = (
    "import http.client, sys;"
    " c = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5);"
    " c.request('GET', sys.argv[3]); status = c.getresponse().status;"
    " sys.exit(0 if 200 <= status < 400 else f'HTTP status {status}')"
)


class Kind(StrEnum):
    STARTUP = "startupProbe"
    READINESS = "readinessProbe"
    LIVENESS = "livenessProbe"


@dataclass(slots=True)
class Probe:
    """One probe of one start of a container. ``step`` runs it when it is due."""

    kind: Kind
    spec: Manifest
    container: Manifest
    address: str
    started_seconds: float
    is_passing: bool | None = None
    """None before enough has been seen."""
    last_output: str = ""
    _successes: int = 0
    _failures: int = 0
    _next_seconds: float = field(default=0.0)
    _since_seconds: float = field(default=0.0)
    _process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        self._next_seconds = self.started_seconds + float(self.spec.get("initialDelaySeconds", 0))

    def step(self, now_seconds: float, inside: Started) -> bool:
        """Whether something new is known."""
        if self._process is not None:
            return self._look(now_seconds)
        if now_seconds >= self._next_seconds and inside.pid is not None:
            self._process = inside.execute(probe_argv(self.spec, self.container, self.address))
            self._since_seconds = now_seconds
            self._next_seconds = now_seconds + float(self.spec.get("periodSeconds", 10))
        return False

    def close(self) -> None:
        """End what is running."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _look(self, now_seconds: float) -> bool:
        assert self._process is not None
        code = self._process.poll()
        is_late = now_seconds - self._since_seconds > float(self.spec.get("timeoutSeconds", 1))
        if code is None and not is_late:
            return False
        if code is None:
            self._process.kill()
        output, _ = self._process.communicate()
        self._process = None
        self.last_output = "timed out" if code is None else output.decode(errors="replace").strip()
        self._note(is_success=code == 0)
        return True

    def _note(self, *, is_success: bool) -> None:
        self._successes = self._successes + 1 if is_success else 0
        self._failures = 0 if is_success else self._failures + 1
        if self._successes >= int(self.spec.get("successThreshold", 1)):
            self.is_passing = True
        elif self._failures >= int(self.spec.get("failureThreshold", 3)):
            self.is_passing = False


def probe_argv(spec: Manifest, container: Manifest, address: str) -> list[str]:
    """A command to be executed in the container's namespaces. *Raises:* ``ValueError``."""
    python = [sys.executable, "-I", "-S", "-c"]
    if "exec" in spec:
        return list(spec["exec"]["command"])
    if "tcpSocket" in spec:
        return [*python, _TCP, address, _port(spec["tcpSocket"], container)]
    if "httpGet" in spec:
        path = spec["httpGet"].get("path", "/")
        return [*python, _HTTP, address, _port(spec["httpGet"], container), path]
    raise ValueError(f"probe {sorted(spec)}: only exec, tcpSocket and httpGet are known here")


def _port(target: dict[str, Any], container: Manifest) -> str:
    port = target["port"]
    named = {each.get("name"): each["containerPort"] for each in container.get("ports", [])}
    return str(named.get(port, port))
