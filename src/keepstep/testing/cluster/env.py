"""The environment of a container: values, the downward API, config maps, secrets, services."""

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from keepstep.testing.cluster.manifests import Manifest, Manifests

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class PodFields:
    """What ``fieldRef`` can name."""

    name: str
    namespace: str
    uid: str
    node_name: str
    pod_ip: str
    service_account: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    def value(self, path: str) -> str:
        """*Raises:* ``ValueError`` for a field that is not known here."""
        subscript = _SUBSCRIPT.fullmatch(path)
        if subscript:
            kind, key = subscript.groups()
            return (self.labels if kind == "labels" else self.annotations).get(key, "")
        known = {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "metadata.uid": self.uid,
            "spec.nodeName": self.node_name,
            "spec.serviceAccountName": self.service_account,
            "status.podIP": self.pod_ip,
            "status.podIPs": self.pod_ip,
            "status.hostIP": self.pod_ip,
        }
        if path not in known:
            raise ValueError(f"fieldRef {path!r} is not known to this cluster")
        return known[path]


def container_environ(
    container: Manifest, fields: PodFields, manifests: Manifests, services: Mapping[str, str]
) -> dict[str, str]:
    """What the manifest says; later ones win, and may name earlier ones as ``$(NAME)``.

    Args:
        services: Variables that tell of services; the manifest's own win.
    """
    environ = dict(services)
    for source in container.get("envFrom", []):
        environ |= _all_of(source, manifests)
    for variable in container.get("env", []):
        value = _value(variable, fields, container, manifests)
        if value is not None:
            environ[variable["name"]] = expand(value, environ)
    return environ


def service_environ(services: Iterable[Manifest], addresses: Mapping[str, str]) -> dict[str, str]:
    """What every pod is told of services with an address, unless ``enableServiceLinks`` is off."""
    environ = {}
    for service in services:
        name = service["metadata"]["name"]
        ports = service["spec"].get("ports", [])
        if name not in addresses or not ports:
            continue
        prefix, address = name.upper().replace("-", "_"), addresses[name]
        first = ports[0]["port"]
        environ[f"{prefix}_SERVICE_HOST"] = address
        environ[f"{prefix}_SERVICE_PORT"] = str(first)
        environ[f"{prefix}_PORT"] = f"tcp://{address}:{first}"
        for port in ports:
            link = f"{prefix}_PORT_{port['port']}_TCP"
            environ[link] = f"tcp://{address}:{port['port']}"
            environ |= {f"{link}_ADDR": address, f"{link}_PORT": str(port["port"])}
            environ[f"{link}_PROTO"] = "tcp"
            if "name" in port:
                label = port["name"].upper().replace("-", "_")
                environ[f"{prefix}_SERVICE_PORT_{label}"] = str(port["port"])
    return environ


def expand(text: str, environ: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced; unknown names stay as they are, and ``$$`` is a dollar."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return environ.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


def config_data(manifests: Manifests, name: str) -> dict[str, bytes]:
    """The files of a ConfigMap."""
    document = manifests.get("ConfigMap", name)
    texts = {key: text.encode() for key, text in (document.get("data") or {}).items()}
    encoded = (document.get("binaryData") or {}).items()
    return texts | {key: base64.b64decode(text) for key, text in encoded}


def secret_data(manifests: Manifests, name: str) -> dict[str, bytes]:
    """The files of a Secret."""
    document = manifests.get("Secret", name)
    encoded = (document.get("data") or {}).items()
    texts = (document.get("stringData") or {}).items()
    return {key: base64.b64decode(text) for key, text in encoded} | {
        key: text.encode() for key, text in texts
    }


def _all_of(source: Mapping[str, Any], manifests: Manifests) -> dict[str, str]:
    kind, reader = (
        ("ConfigMap", config_data) if "configMapRef" in source else ("Secret", secret_data)
    )
    reference = source["configMapRef" if kind == "ConfigMap" else "secretRef"]
    if reference.get("optional") and (kind, reference["name"]) not in manifests.objects:
        return {}
    prefix = source.get("prefix", "")
    found = reader(manifests, reference["name"])
    return {prefix + key: value.decode() for key, value in found.items()}


def _value(
    variable: Manifest, fields: PodFields, container: Manifest, manifests: Manifests
) -> str | None:
    """``None`` for an optional one that is not there."""
    source = variable.get("valueFrom")
    if source is None:
        return str(variable.get("value", ""))
    if "fieldRef" in source:
        return fields.value(source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return _resource(source["resourceFieldRef"]["resource"], container)
    kind, key_reference, reader = (
        ("ConfigMap", source.get("configMapKeyRef"), config_data)
        if "configMapKeyRef" in source
        else ("Secret", source.get("secretKeyRef"), secret_data)
    )
    if key_reference is None:
        raise ValueError(f"env {variable['name']}: valueFrom {sorted(source)} is not known here")
    is_there = (kind, key_reference["name"]) in manifests.objects
    data = reader(manifests, key_reference["name"]) if is_there else {}
    if key_reference["key"] in data:
        return data[key_reference["key"]].decode()
    if key_reference.get("optional"):
        return None
    raise KeyError(f"env {variable['name']}: {kind} {key_reference['name']!r} has no such key")


def _resource(path: str, container: Manifest) -> str:
    section, _, name = path.partition(".")
    found = container.get("resources", {}).get(section, {}).get(name)
    if found is None:
        raise ValueError(f"resourceFieldRef {path}: the container does not set it")
    return str(found)
