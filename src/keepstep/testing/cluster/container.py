"""A container of a pod, as the kubelet sees to it: starts, probes, an end in good order."""

import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from keepstep.testing.cluster.manifests import Manifest
from keepstep.testing.cluster.probes import Kind, Probe
from keepstep.testing.cluster.runtime import Order, Runtime, Started

_MESSAGE_BYTES = 4096
_LOG_MESSAGE_BYTES = 2048
_START_ERROR = 128
_LEAST_SECONDS_AFTER_HOOK = 2.0

Tell = Callable[..., None]
"""``tell(reason, message, is_warning=...)``: an event of the pod."""


@dataclass(frozen=True, slots=True)
class Termination:
    """How a start of a container ended."""

    exit_code: int
    reason: str
    message: str
    started_seconds: float
    finished_seconds: float


@dataclass(slots=True)
class _Stop:
    """An end that was asked for."""

    deadline_seconds: float
    hook: "subprocess.Popen[bytes] | None"
    is_told: bool = False


@dataclass(slots=True)
class Container:
    """``order`` says how to start it, except for what differs from start to start."""

    spec: Manifest
    order: Order
    runtime: Runtime
    address: str
    message_path: Path
    tell: Tell
    grace_seconds: float = 30.0
    """Of the pod."""
    restarts: int = 0
    termination: Termination | None = None
    """Of the newest start, once it has ended."""
    last_termination: Termination | None = None
    """Of the start before."""
    started_seconds: float = 0.0
    inside: Started | None = None
    probes: dict[Kind, Probe] = field(default_factory=dict)
    _stop: _Stop | None = None

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def is_running(self) -> bool:
        return self.inside is not None and self.termination is None

    @property
    def is_ready(self) -> bool:
        if not self.is_running:
            return False
        gates = (Kind.STARTUP, Kind.READINESS)
        return all(self.probes[kind].is_passing for kind in gates if kind in self.probes)

    def start(self, now_seconds: float) -> None:
        if self.inside is not None:
            self.restarts += 1
            self.last_termination = self.termination
        self.message_path.parent.mkdir(parents=True, exist_ok=True)
        self.message_path.write_bytes(b"")
        self.message_path.chmod(0o666)
        self.termination = self._stop = None
        self.started_seconds = now_seconds
        self.inside = self.runtime.start(self.order)
        self.probes = {
            kind: Probe(kind, self.spec[kind.value], self.spec, self.address, now_seconds)
            for kind in Kind
            if kind.value in self.spec
        }
        self.tell("Started", f"container {self.name} started")

    def stop(self, now_seconds: float, grace_seconds: float) -> None:
        """preStop, SIGTERM, and SIGKILL when the grace is over. A shorter grace may follow."""
        deadline = now_seconds + grace_seconds
        if not self.is_running or self.inside is None:
            return
        if self._stop is not None:
            self._stop.deadline_seconds = min(self._stop.deadline_seconds, deadline)
            return
        hook = self.spec.get("lifecycle", {}).get("preStop")
        running = self.inside.execute(hook["exec"]["command"]) if hook else None
        self._stop = _Stop(deadline, running)
        self.tell("Killing", f"stopping container {self.name}, {grace_seconds:g} s of grace")

    def kill(self) -> None:
        """SIGKILL, without a word."""
        for probe in self.probes.values():
            probe.close()
        if self.inside is not None:
            self.inside.kill()

    def step(self, now_seconds: float) -> None:
        if not self.is_running or self.inside is None:
            return
        code = self.inside.poll()
        if code is not None:
            self._note_end(code, now_seconds)
        elif self._stop is not None:
            self._go_on_stopping(self._stop, self.inside, now_seconds)
        else:
            self._probe(self.inside, now_seconds)

    def reap(self) -> None:
        """Wait for the process to be gone after ``kill``."""
        if self.inside is not None:
            self.inside.wait()

    def _note_end(self, code: int, now_seconds: float) -> None:
        for probe in self.probes.values():
            probe.close()
        reason = {0: "Completed", _START_ERROR: "StartError"}.get(code, "Error")
        self.termination = Termination(
            code, reason, self._message(code), self.started_seconds, now_seconds
        )
        self.tell("Ended", f"container {self.name} ended with {code}", is_warning=code != 0)

    def _message(self, code: int) -> str:
        with self.message_path.open("rb") as file:
            message = file.read(_MESSAGE_BYTES)
        falls_back = self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not message and code != 0 and (falls_back or code == _START_ERROR):
            message = self.order.log.read_bytes()[-_LOG_MESSAGE_BYTES:]
        return message.decode(errors="replace")

    def _go_on_stopping(self, stop: _Stop, inside: Started, now_seconds: float) -> None:
        is_over = now_seconds >= stop.deadline_seconds
        if stop.hook is not None and (stop.hook.poll() is not None or is_over):
            if stop.hook.poll() is None:
                stop.hook.kill()
                stop.deadline_seconds = now_seconds + _LEAST_SECONDS_AFTER_HOOK
                is_over = False
            stop.hook.communicate()
            stop.hook = None
        if stop.hook is None and not stop.is_told:
            inside.signal(signal.SIGTERM)
            stop.is_told = True
        if is_over:
            inside.kill()

    def _probe(self, inside: Started, now_seconds: float) -> None:
        startup = self.probes.get(Kind.STARTUP)
        is_starting = startup is not None and not startup.is_passing
        for kind, probe in self.probes.items():
            if is_starting and kind is not Kind.STARTUP:
                continue
            if kind is Kind.STARTUP and probe.is_passing:
                continue
            if not probe.step(now_seconds, inside) or probe.is_passing is not False:
                continue
            message = f"{kind} of {self.name} failed: {probe.last_output[-200:]}"
            self.tell("Unhealthy", message, is_warning=True)
            if kind is not Kind.READINESS:
                self.stop(now_seconds, self._probe_grace_seconds(probe))
                return

    def _probe_grace_seconds(self, probe: Probe) -> float:
        return float(probe.spec.get("terminationGracePeriodSeconds", self.grace_seconds))
