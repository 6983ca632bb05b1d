"""Names of pods and services, as the cluster's DNS has them, in the form of /etc/hosts."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from keepstep.testing.cluster.manifests import Manifest

_PADDING_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod, as services see it."""

    address: str
    hostname: str
    subdomain: str
    labels: Mapping[str, str]
    is_ready: bool


def selected(service: Manifest, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Those behind a service; the ready ones, unless it publishes others too."""
    spec = service["spec"]
    selector = spec.get("selector") or {}
    publishes_all = bool(spec.get("publishNotReadyAddresses", False))
    return [
        each
        for each in endpoints
        if selector.items() <= each.labels.items() and (each.is_ready or publishes_all)
    ]


def is_headless(service: Manifest) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def hosts_text(
    services: Iterable[Manifest],
    endpoints: Iterable[Endpoint],
    addresses: Mapping[str, str],
    namespace: str,
) -> str:
    """What all pods can resolve.

    Args:
        addresses: Of services that have one, by name.
    """
    endpoints = list(endpoints)
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for service in services:
        name = service["metadata"]["name"]
        if name in addresses:
            lines.append(f"{addresses[name]} {' '.join(_names(name, namespace))}")
            continue
        for each in selected(service, endpoints):
            names = _names(name, namespace)
            if each.subdomain == name:
                names = _names(f"{each.hostname}.{name}", namespace) + names
            lines.append(f"{each.address} {' '.join(names)}")
    return "\n".join(lines) + "\n"


def write_hosts(path: Path, text: str) -> None:
    """In place: containers have mounted the file, not its name. Readers see one or the other."""
    content = text.encode()
    size = path.stat().st_size if path.exists() else 0
    blocks = -(-(len(content) + 1) // _PADDING_BYTES)
    content = content.ljust(max(size, blocks * _PADDING_BYTES), b"\n")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, content, 0)
    finally:
        os.close(descriptor)


def _names(name: str, namespace: str) -> list[str]:
    """By what the search domains of a pod let it be called."""
    full = f"{name}.{namespace}.svc.cluster.local"
    return [full, name, f"{name}.{namespace}", f"{name}.{namespace}.svc"]
