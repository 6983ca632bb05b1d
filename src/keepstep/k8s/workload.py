"""Pods that run keepstep, wherever their template stands."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keepstep.k8s.manifest import Body, Finding, Manifest, at, items

_VERB = re.compile(r"\bkeepstep\s+(run|store|verify|prune)\b")
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")

_JOBS = {
    "Job": "spec",
    "CronJob": "spec.jobTemplate.spec",
    "JobSet": "spec.replicatedJobs.*.template.spec",
    "TrainingRuntime": "spec.template.spec.replicatedJobs.*.template.spec",
    "ClusterTrainingRuntime": "spec.template.spec.replicatedJobs.*.template.spec",
}
_SERVERS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod template with a container that runs keepstep.

    Args:
        verb: What that container runs: ``run``, ``store``, ``verify``, ``prune``.
        place: Where the template's parent stands: a Job's specification, or a Deployment's.
    """

    manifest: Manifest
    place: str
    verb: str
    container: Body
    container_place: str

    @property
    def spec(self) -> Body:
        """Of the Job, or of the Deployment."""
        found: Body = self.manifest.get(self.place) or {}
        return found

    @property
    def is_job(self) -> bool:
        return self.manifest.kind in _JOBS

    @property
    def pod(self) -> Body:
        found: Body = at(self.spec, "template.spec") or {}
        return found

    @property
    def labels(self) -> Body:
        found: Body = at(self.spec, "template.metadata.labels") or {}
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Variables that are written out, with references among them replaced."""
        known: dict[str, str] = {}
        for entry in items(self.container, "env"):
            if "value" in entry:
                known[str(entry.get("name"))] = _expanded(str(entry["value"]), known)
        return known

    @property
    def words(self) -> list[str]:
        """Command and arguments, as the container is started; unknown references stay."""
        return [_expanded(word, self.environment) for word in _written(self.container)]

    def option(self, name: str) -> str | None:
        """What an option of the command line is set to."""
        words = [
            word.replace("_", "-", word.count("_")) if word[:2] == "--" else word
            for word in _written(self.container)
        ]
        for number, word in enumerate(words):
            flag, assigned, _ = word.partition("=")
            if flag == name and assigned:
                return self.words[number].partition("=")[2]
            if flag == name and number + 1 < len(words):
                return self.words[number + 1]
        return None

    @property
    def nodes(self) -> tuple[int, int] | None:
        """The least and the most, by ``--nnodes``."""
        least, _, most = (self.option("--nnodes") or "").partition(":")
        if not least.isdecimal() or not (most or least).isdecimal():
            return None
        return int(least), int(most or least)

    def mount_at(self, path: str) -> Body | None:
        """The volume that is mounted there."""
        for mount in items(self.container, "volumeMounts"):
            if mount.get("mountPath") == path:
                for volume in items(self.pod, "volumes"):
                    if volume.get("name") == mount.get("name"):
                        return volume
        return None

    def of_job(self, field: str, wrong: str, instead: str) -> Finding:
        """A finding about the Job, or the Deployment."""
        return self.manifest.finding(f"{self.place}.{field}", wrong, instead)

    def of_pod(self, field: str, wrong: str, instead: str) -> Finding:
        return self.of_job(f"template.spec.{field}", wrong, instead)

    def of_container(self, field: str, wrong: str, instead: str) -> Finding:
        return self.manifest.finding(f"{self.container_place}.{field}", wrong, instead)


class Cluster:
    """All objects, and those pods of them that run keepstep."""

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self.manifests = manifests
        self.workloads = [found for manifest in manifests for found in _of(manifest)]

    def of_kind(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest.kind == kind]

    def running(self, *verbs: str) -> list[Workload]:
        return [workload for workload in self.workloads if workload.verb in verbs]


def _of(manifest: Manifest) -> Iterator[Workload]:
    for place in _places(manifest):
        containers = items(manifest.body, f"{place}.template.spec.containers")
        for number, container in enumerate(containers):
            if match := _VERB.search(_command_line(container)):
                path = f"{place}.template.spec.containers.{number}"
                yield Workload(manifest, place, match[1], container, path)


def _places(manifest: Manifest) -> list[str]:
    if manifest.kind in _SERVERS:
        return ["spec"]
    before, star, after = _JOBS.get(manifest.kind, "").partition("*")
    if not star:
        return [before] if before else []
    jobs = items(manifest.body, before.rstrip("."))
    return [f"{before}{number}{after}" for number in range(len(jobs))]


def _written(container: Body) -> list[str]:
    return [str(word) for key in ("command", "args") for word in _list(container.get(key))]


def _command_line(container: Body) -> str:
    """With the image's entry point, if that is what is started."""
    words = _written(container)
    is_ours = "command" not in container and "keepstep" in str(container.get("image"))
    return " ".join(["keepstep", *words] if is_ours else words)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _expanded(text: str, known: Mapping[str, str]) -> str:
    return _REFERENCE.sub(lambda match: known.get(match[1], match[0]), text)
