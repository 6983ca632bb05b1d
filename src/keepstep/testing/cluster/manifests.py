"""Rendered manifests, as ``kubectl kustomize`` prints them, by kind and name."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]

RUN_KINDS = ("Job", "Deployment", "Service", "ConfigMap", "Secret", "PersistentVolumeClaim")
"""What a cluster makes use of; other kinds are listed in ``Manifests.left_out``."""

_SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(slots=True)
class Manifests:
    """Those of one namespace."""

    objects: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """``Kind/name`` of objects that nothing here makes use of."""

    @property
    def namespace(self) -> str:
        named = (each["metadata"].get("namespace") for each in self.objects.values())
        return next((name for name in named if name), "default")

    def of(self, kind: str) -> Iterator[Manifest]:
        return (each for (found, _), each in self.objects.items() if found == kind)

    def get(self, kind: str, name: str) -> Manifest:
        """*Raises:* ``KeyError`` that says what is missing."""
        if (kind, name) not in self.objects:
            raise KeyError(f"no {kind} {name!r} among the manifests")
        return self.objects[kind, name]

    def container(self, kind: str, name: str, container: str | None = None) -> Manifest:
        """To be changed before a cluster is made; the first one if none is named."""
        containers = self.get(kind, name)["spec"]["template"]["spec"]["containers"]
        found = [each for each in containers if container in (None, each["name"])]
        if not found:
            raise KeyError(f"{kind} {name!r} has no container {container!r}")
        first: Manifest = found[0]
        return first


def read_manifests(*paths: Path) -> Manifests:
    """Of YAML files. *Raises:* ``ValueError`` for a document that is no manifest."""
    return parse_manifests("\n---\n".join(path.read_text() for path in paths))


def parse_manifests(text: str) -> Manifests:
    """Of YAML documents. *Raises:* ``ValueError`` for one that is no manifest."""
    import yaml

    return manifests_from(document for document in yaml.safe_load_all(text) if document)


def manifests_from(documents: Iterable[Mapping[str, Any]]) -> Manifests:
    found = Manifests()
    for document in documents:
        if "kind" not in document or "name" not in document.get("metadata", {}):
            raise ValueError(f"not a manifest: {str(document)[:100]}")
        kind, name = document["kind"], document["metadata"]["name"]
        if kind in RUN_KINDS:
            found.objects[kind, name] = deepcopy(dict(document))
        else:
            found.left_out.append(f"{kind}/{name}")
    return found


def set_environ(container: Manifest, **variables: str) -> None:
    """Set variables of a container, in place of what it says of them."""
    kept = [each for each in container.get("env", []) if each["name"] not in variables]
    added = [{"name": name, "value": value} for name, value in variables.items()]
    container["env"] = kept + added


def bytes_of(quantity: str | int) -> int:
    """Of ``512Mi``, ``1G``, ``1000``. *Raises:* ``ValueError``."""
    text = str(quantity)
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return int(float(text.removesuffix(suffix)) * factor)
    return int(float(text))
