"""JobSets and TrainJobs, whose schemas no tool brings along: their form, as far as used here."""

from collections.abc import Iterator, Mapping
from typing import Any

from keepstep.k8s.manifest import Finding, Manifest, items
from keepstep.k8s.workload import Cluster

_JOBSET = {
    "replicatedJobs": {"name", "groupName", "template", "replicas", "dependsOn"},
    "network": {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"},
    "successPolicy": {"operator", "targetReplicatedJobs"},
    "failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "startupPolicy": {"startupPolicyOrder"},
    "coordinator": {"replicatedJob", "jobIndex", "podIndex"},
    "suspend": None,
    "managedBy": None,
    "ttlSecondsAfterFinished": None,
    "volumeClaimPolicies": {"templates", "retentionPolicy"},
}
"""Fields of jobset.x-k8s.io/v1alpha2, with theirs."""
_RULE = {
    "name",
    "action",
    "onJobFailureReasons",
    "onJobFailureMessagePatterns",
    "targetReplicatedJobs",
}
_WORDS = {
    "failurePolicy.restartStrategy": {"Recreate", "BlockingRecreate", "InPlaceRestart"},
    "successPolicy.operator": {"All", "Any"},
    "startupPolicy.startupPolicyOrder": {"AnyOrder", "InOrder"},
}
_ACTIONS = {
    "FailJobSet",
    *("RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    *("RestartJob", "RestartJobAndIgnoreMaxRestarts"),
}
_TRAINJOB = {
    *("runtimeRef", "initializer", "trainer", "runtimePatches", "suspend"),
    *("activeDeadlineSeconds", "managedBy"),
}
_TRAINER = {
    *("image", "command", "args", "env", "numNodes", "resourcesPerNode", "numProcPerNode"),
}
_RUNTIME = {"mlPolicy", "podGroupPolicy", "template"}
_ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"


def jobsets(cluster: Cluster) -> Iterator[Finding]:
    for manifest in cluster.manifests:
        if manifest.kind == "JobSet":
            yield from _jobset(manifest, "spec")


def runtimes(cluster: Cluster) -> Iterator[Finding]:
    for manifest in cluster.manifests:
        if manifest.kind not in ("TrainingRuntime", "ClusterTrainingRuntime"):
            continue
        yield from _unknown(manifest, "spec", _RUNTIME)
        yield from _jobset(manifest, "spec.template.spec")
        jobs = items(manifest.body, "spec.template.spec.replicatedJobs")
        if not any(_labels(job).get(_ANCESTOR) == "trainer" for job in jobs):
            wrong = "the Trainer does not find the job that trains"
            yield manifest.finding(
                "spec.template.spec.replicatedJobs", wrong, f"add the label {_ANCESTOR}: trainer"
            )


def trainjobs(cluster: Cluster) -> Iterator[Finding]:
    """Of fixed size: the number of nodes is said in three places."""
    have = {(one.kind, one.name): one for one in cluster.manifests}
    for manifest in cluster.of_kind("TrainJob"):
        yield from _unknown(manifest, "spec", _TRAINJOB)
        yield from _unknown(manifest, "spec.trainer", _TRAINER)
        kind = manifest.get("spec.runtimeRef.kind") or "ClusterTrainingRuntime"
        name = manifest.get("spec.runtimeRef.name")
        if (runtime := have.get((kind, name))) is None:
            wrong = f"{kind} {name} is not among these manifests"
            yield manifest.finding("spec.runtimeRef", wrong, "add it, or correct the name")
            continue
        number = manifest.get("spec.trainer.numNodes") or runtime.get("spec.mlPolicy.numNodes")
        for trainer in [one for one in cluster.workloads if one.manifest is runtime]:
            if trainer.nodes is not None and set(trainer.nodes) != {number}:
                least, most = trainer.nodes
                wrong = f"is {number}, with --nnodes={least}:{most}: a TrainJob has a fixed size"
                instead = f"write the same number everywhere, as in --nnodes={most}"
                yield manifest.finding("spec.trainer.numNodes", wrong, instead)


OF_THE_CLUSTER = (jobsets, runtimes, trainjobs)


def _jobset(manifest: Manifest, place: str) -> Iterator[Finding]:
    yield from _unknown(manifest, place, set(_JOBSET))
    for field, fields in _JOBSET.items():
        if fields is not None:
            yield from _unknown(manifest, f"{place}.{field}", fields)
    for path, allowed in _WORDS.items():
        value = manifest.get(f"{place}.{path}")
        if value is not None and value not in allowed:
            yield _not_among(manifest, f"{place}.{path}", value, allowed)
    names = {str(job.get("name")) for job in items(manifest.body, f"{place}.replicatedJobs")}
    rules = items(manifest.body, f"{place}.failurePolicy.rules")
    for number, rule in enumerate(rules):
        path = f"{place}.failurePolicy.rules.{number}"
        yield from _unknown(manifest, path, _RULE)
        if rule.get("action") not in _ACTIONS:
            yield _not_among(manifest, f"{path}.action", rule.get("action"), _ACTIONS)
        yield from _targets(manifest, f"{path}.targetReplicatedJobs", names)
    yield from _targets(manifest, f"{place}.successPolicy.targetReplicatedJobs", names)
    for number, job in enumerate(items(manifest.body, f"{place}.replicatedJobs")):
        for dependency in items(job, "dependsOn"):
            if dependency.get("name") not in names:
                path = f"{place}.replicatedJobs.{number}.dependsOn"
                yield _not_among(manifest, path, dependency.get("name"), names)


def _unknown(manifest: Manifest, path: str, known: set[str]) -> Iterator[Finding]:
    found = manifest.get(path)
    for entry in found if isinstance(found, list) else [found]:
        for field in sorted(set(entry) - known) if isinstance(entry, Mapping) else []:
            wrong = "there is no such field"
            yield manifest.finding(
                f"{path}.{field}", wrong, f"known are {', '.join(sorted(known))}"
            )


def _targets(manifest: Manifest, path: str, names: set[str]) -> Iterator[Finding]:
    for name in manifest.get(path) or []:
        if name not in names:
            yield _not_among(manifest, path, name, names)


def _not_among(manifest: Manifest, path: str, value: object, allowed: set[str]) -> Finding:
    return manifest.finding(path, f"{value} is not known", f"write {' or '.join(sorted(allowed))}")


def _labels(job: Mapping[str, Any]) -> Mapping[str, Any]:
    template = job.get("template") or {}
    found: Mapping[str, Any] = (template.get("metadata") or {}).get("labels") or {}
    return found
