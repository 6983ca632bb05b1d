"""Where else notices come from: a file, or the metadata service of a cloud's machines.

Each cloud announces at an address of its own that a preemptible machine will be taken away. All of
them are asked in plain HTTP, on the machine itself.
"""

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from keepstep.elastic.notices import Notices

logger = logging.getLogger("keepstep.elastic")

Cloud = Literal["aws", "gcp", "azure"]

_METADATA = "http://169.254.169.254"
_TIMEOUT_SECONDS = 2.0
_SHORTEST_SECONDS = 5.0

_AWS_SECONDS = 120.0
_GCP_SECONDS = 30.0
_AZURE_SECONDS = 30.0

# The metadata service is on the machine: no proxy is asked.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Probe(Protocol):
    """One place to look."""

    name: str

    def look(self) -> float | None:
        """Seconds until this machine is taken away, or ``None`` as long as it is not.

        *Raises:* ``OSError``, ``ValueError`` if the place does not answer as it should.
        """
        ...


@dataclass(slots=True)
class FileProbe:
    """A file that appears: by hand, by a sidecar, by a drill. It may hold the seconds left."""

    path: Path
    grace_seconds: float
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"file {self.path}"

    def look(self) -> float | None:
        try:
            text = self.path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        return float(text) if text else self.grace_seconds


@dataclass(slots=True)
class AwsProbe:
    """EC2's spot interruption notice: two minutes ahead, by IMDSv2."""

    url: str = _METADATA
    name: str = "aws spot instance-action"
    _token: str = ""

    def look(self) -> float | None:
        if not self._token:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
            self._token = _get(f"{self.url}/latest/api/token", headers, method="PUT") or ""
        try:
            text = _get(
                f"{self.url}/latest/meta-data/spot/instance-action",
                {"X-aws-ec2-metadata-token": self._token},
            )
        except urllib.error.HTTPError as error:
            if error.code == 401:  # the token has run out
                self._token = ""
            raise
        if text is None:
            return None
        return _seconds_until(json.loads(text)["time"], at_most=_AWS_SECONDS)


@dataclass(slots=True)
class GcpProbe:
    """Compute Engine's ``preempted``: half a minute ahead."""

    url: str = _METADATA
    name: str = "gcp preempted"

    def look(self) -> float | None:
        text = _get(
            f"{self.url}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}
        )
        return _GCP_SECONDS if text is not None and text.strip().upper() == "TRUE" else None


@dataclass(slots=True)
class AzureProbe:
    """Azure's scheduled events: ``Preempt``, at least half a minute ahead.

    All machines of a scale set hear of the events of each.
    """

    url: str = _METADATA
    name: str = "azure scheduled event"
    _machine: str | None = None

    def look(self) -> float | None:
        document = json.loads(self._ask("scheduledevents?api-version=2020-07-01") or "{}")
        for event in document.get("Events", []):
            if event.get("EventType") == "Preempt" and self._is_ours(event.get("Resources")):
                start = event.get("NotBefore")
                # None before it has a time; empty once it has begun.
                return _seconds_until(start, at_most=900.0) if start else _AZURE_SECONDS
        return None

    def _is_ours(self, machines: Sequence[str] | None) -> bool:
        """Whether this machine is among them; all are meant where none is named."""
        if self._machine is None:
            self._machine = self._ask("instance/compute/name?api-version=2021-02-01&format=text")
        return not (machines and self._machine) or self._machine in machines

    def _ask(self, path: str) -> str | None:
        return _get(f"{self.url}/metadata/{path}", {"Metadata": "true"})


_CLOUDS: dict[str, type[AwsProbe | GcpProbe | AzureProbe]] = {
    "aws": AwsProbe,
    "gcp": GcpProbe,
    "azure": AzureProbe,
}


def cloud_probe(cloud: Cloud, url: str | None = None) -> Probe:
    """The probe of a cloud.

    Args:
        url: Of the metadata service, where it is not the usual one.
    """
    return _CLOUDS[cloud](url or _METADATA)


class ProbeThread:
    """Looks everywhere, again and again, and posts what it finds. *Ranks:* local."""

    def __init__(self, probes: Sequence[Probe], notices: Notices, *, every_seconds: float) -> None:
        self._probes = probes
        self._notices = notices
        self._every_seconds = every_seconds
        self._is_over = threading.Event()
        self._silent: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="keepstep-probes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._is_over.set()
        self._thread.join(timeout=2 * _TIMEOUT_SECONDS)

    def _run(self) -> None:
        while not self._is_over.is_set():
            for probe in self._probes:
                self._look(probe)
            self._is_over.wait(self._every_seconds)

    def _look(self, probe: Probe) -> None:
        try:
            seconds = probe.look()
        except Exception as error:  # noqa: BLE001  # whatever is answered, it is asked again
            if probe.name not in self._silent:
                logger.warning("%s cannot be asked, and is asked again: %s", probe.name, error)
            self._silent.add(probe.name)
            return
        self._silent.discard(probe.name)
        if seconds is not None:
            self._notices.post(probe.name, grace_seconds=seconds)
            self._is_over.set()


def _get(url: str, headers: dict[str, str], *, method: str = "GET") -> str | None:
    """The body, or ``None`` for 404. *Raises:* ``OSError``."""
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310  # http
    try:
        with _open(request, timeout=_TIMEOUT_SECONDS) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:  # nothing is announced
            return None
        raise


def _seconds_until(time_text: str, *, at_most: float) -> float:
    """By this machine's clock, which may be wrong: within reason."""
    try:
        moment = datetime.fromisoformat(time_text)
    except ValueError:
        moment = datetime.strptime(time_text, "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=UTC)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - datetime.now(UTC)).total_seconds()
    return min(max(seconds, _SHORTEST_SECONDS), at_most)
