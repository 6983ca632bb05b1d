"""Volumes of a pod as directories of this machine, and where its containers see them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keepstep.testing.cluster.env import config_data, secret_data
from keepstep.testing.cluster.manifests import Manifest, Manifests, bytes_of


@dataclass(frozen=True, slots=True)
class Mount:
    """One ``volumeMounts`` entry, resolved."""

    target: str
    source: str | None
    """A directory or file of this machine; none: memory of the container's own."""
    is_read_only: bool = False
    size_bytes: int = 0
    """Of memory; 0: no limit."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_volumes(
    pod_spec: Manifest, manifests: Manifests, pod_directory: Path, claims_directory: Path
) -> dict[str, Manifest]:
    """Make the directories; by name of volume: ``{"path": ...}``, or ``{"size_bytes": ...}``."""
    made: dict[str, Manifest] = {}
    for volume in pod_spec.get("volumes", []):
        name = volume["name"]
        directory = pod_directory / "volumes" / name
        is_in_memory = (volume.get("emptyDir") or {}).get("medium") == "Memory"
        if is_in_memory:
            made[name] = {"size_bytes": bytes_of(volume["emptyDir"].get("sizeLimit", 0))}
            continue
        made[name] = {"path": _directory(volume, directory, claims_directory, manifests)}
    return made


def mounts_of(container: Manifest, volumes: Mapping[str, Manifest]) -> list[Mount]:
    """*Raises:* ``KeyError`` for a volume that the pod does not have."""
    mounts = []
    for entry in container.get("volumeMounts", []):
        if entry["name"] not in volumes:
            raise KeyError(f"container {container['name']} mounts no volume {entry['name']!r}")
        volume = volumes[entry["name"]]
        target = entry["mountPath"].rstrip("/")
        if "path" not in volume:
            mounts.append(Mount(target, None, size_bytes=volume["size_bytes"]))
            continue
        source = Path(volume["path"], entry.get("subPath", "."))
        if not source.exists():
            source.mkdir(parents=True)
            source.chmod(0o777)
        is_read_only = bool(entry.get("readOnly", False) or volume.get("is_read_only"))
        mounts.append(Mount(target, str(source), is_read_only))
    return mounts


def _directory(
    volume: Manifest, directory: Path, claims_directory: Path, manifests: Manifests
) -> str:
    if "hostPath" in volume:
        return str(volume["hostPath"]["path"])
    if "persistentVolumeClaim" in volume:
        claim = volume["persistentVolumeClaim"]["claimName"]
        manifests.get("PersistentVolumeClaim", claim)
        directory = claims_directory / claim
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o777)  # as the kubelet makes an emptyDir
    for name, content in _files(volume, manifests).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(directory)


def _files(volume: Manifest, manifests: Manifests) -> dict[str, bytes]:
    if "emptyDir" in volume or "persistentVolumeClaim" in volume:
        return {}
    if "configMap" in volume:
        source = volume["configMap"]
        found = config_data(manifests, source["name"])
    elif "secret" in volume:
        source = volume["secret"]
        found = secret_data(manifests, source["secretName"])
    else:
        kinds = sorted(volume.keys() - {"name"})
        raise ValueError(f"volume {volume['name']}: {', '.join(kinds)} is not known here")
    if "items" not in source:
        return found
    return {item["path"]: found[item["key"]] for item in source["items"]}
