"""What several objects say of each other."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import PurePosixPath

from keepstep.k8s.manifest import Body, Finding, Manifest, at, fits, items, named
from keepstep.k8s.rules_pod import SHARED_MEMORY
from keepstep.k8s.workload import Cluster, Workload

VALUES = "keepstep-values"
"""The ConfigMap that k8s/base keeps them in."""
_DRAINED = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""Nodes whose pods are evicted on a notice, which asks budgets. GKE's kubelet asks nobody."""


def headless_service(cluster: Cluster) -> Iterator[Finding]:
    """Pods have names only if a Service of their subdomain's name selects them."""
    services = {one.name: one for one in cluster.of_kind("Service")}
    for trainer in cluster.running("run"):
        name = trainer.pod.get("subdomain")
        if name is None or trainer.manifest.kind not in ("Job", "Deployment"):
            continue  # a JobSet makes its own
        service = services.get(str(name))
        if service is None:
            instead = "add one with clusterIP: None, or leave subdomain out"
            yield trainer.of_pod("subdomain", f"no Service is called {name}", instead)
            continue
        if service.get("spec.clusterIP") != "None":
            wrong = "is no headless Service: pods have no names of their own"
            yield service.finding("spec.clusterIP", wrong, "write None")
        if service.get("spec.publishNotReadyAddresses") is not True:
            wrong = "pods must find each other in order to become ready"
            yield service.finding("spec.publishNotReadyAddresses", wrong, "write true")
        if not fits(service.get("spec.selector"), trainer.labels):
            wrong = f"does not select the pods of {trainer.manifest.title}"
            yield service.finding("spec.selector", wrong, f"write {dict(trainer.labels)}")


def selectors(cluster: Cluster) -> Iterator[Finding]:
    """Whatever selects pods selects some."""
    labels = [workload.labels for workload in cluster.workloads]
    paths = {"PodDisruptionBudget": "spec.selector", "NetworkPolicy": "spec.podSelector"}
    for manifest in cluster.manifests:
        if (path := paths.get(manifest.kind)) is None:
            continue
        if not any(fits(manifest.get(path), one) for one in labels):
            yield manifest.finding(path, "selects none of these pods", "write labels of theirs")
    for workload in cluster.workloads:
        if workload.is_job or fits(workload.spec.get("selector"), workload.labels):
            continue
        wrong = "does not select the pods of its own template"
        yield workload.of_job("selector.matchLabels", wrong, f"write {dict(workload.labels)}")


def budget(cluster: Cluster) -> Iterator[Finding]:
    """A drain must leave the least number of nodes, and must come to its end."""
    for trainer in [
        one for one in cluster.workloads if one.verb == "run" and one.nodes is not None
    ]:
        assert trainer.nodes is not None
        least, most = trainer.nodes
        for manifest in cluster.manifests:
            is_ours = fits(manifest.get("spec.selector"), trainer.labels)
            if manifest.kind != "PodDisruptionBudget" or not is_ours:
                continue
            found_least = manifest.get("spec.minAvailable")
            if least == most:
                wrong = f"all {most} nodes are needed: it refuses each eviction, and no drain ends"
                yield manifest.finding("spec", wrong, "delete this budget")
            elif (label := _drained_on_notice(trainer)) is not None:
                wrong = f"it may refuse the drain that a notice comes as, where nodes have {label}"
                yield manifest.finding("spec", wrong, "delete this budget")
            elif found_least != least:
                wrong = f"is {found_least}, and training needs {least} nodes"
                yield manifest.finding("spec.minAvailable", wrong, f"write {least}")


def references(cluster: Cluster) -> Iterator[Finding]:
    """ConfigMaps and service accounts that are named are there."""
    have = {(one.kind, one.name) for one in cluster.manifests}
    for workload in cluster.workloads:
        account = workload.pod.get("serviceAccountName", "default")
        if account != "default" and ("ServiceAccount", account) not in have:
            instead = "add it, or leave the name out"
            yield workload.of_pod("serviceAccountName", f"{account} is not there", instead)
        for volume in items(workload.pod, "volumes"):
            for kind, path in (
                ("ConfigMap", "configMap.name"),
                ("PersistentVolumeClaim", "persistentVolumeClaim.claimName"),
            ):
                name = at(volume, path)
                if name is not None and (kind, name) not in have:
                    wrong = f"{kind} {name} is not among these manifests"
                    yield workload.of_pod("volumes", wrong, "add it, or correct the name")


def one_uri(cluster: Cluster) -> Iterator[Finding]:
    """What is trained is what is verified and pruned."""
    trained = {
        uri
        for one in cluster.running("run")
        if (uri := one.environment.get("KEEPSTEP_URI")) is not None
    }
    for keeper in cluster.running("verify", "prune"):
        uri = next((word for word in _after(keeper.words, keeper.verb)), None)
        if trained and uri not in trained:
            wrong = f"looks after {uri}, and {' and '.join(sorted(trained))} is trained"
            yield keeper.of_container("args", wrong, "write the same URI")


def slots(cluster: Cluster) -> Iterator[Finding]:
    """Every rank gets a slot of each batch, with all nodes there as well."""
    for trainer in cluster.running("run"):
        processes = trainer.option("--nproc-per-node") or ""
        if trainer.nodes is None or not processes.isdecimal():
            continue
        ranks = trainer.nodes[1] * int(processes)
        for recipe, key in _recipes(cluster, trainer):
            batch = _batch(str(recipe.get("data")[key]), trainer.environment)
            if batch is not None and batch[0] // batch[1] < ranks:
                wrong = (
                    f"a batch of {batch[0]} in slots of {batch[1]} is not enough for {ranks} ranks"
                )
                instead = f"write a batch.global_size of at least {batch[1] * ranks}"
                yield recipe.finding(f"data.{key}", wrong, f"{instead}, or a smaller microbatch")


def metrics_port(cluster: Cluster) -> Iterator[Finding]:
    for trainer in cluster.running("run"):
        annotations = at(trainer.spec, "template.metadata.annotations") or {}
        scraped = annotations.get("prometheus.io/port")
        port = named(items(trainer.container, "ports"), "metrics").get("containerPort")
        served = trainer.option("--metrics-port")
        if scraped is not None and str(port) != scraped:
            field = "template.metadata.annotations.prometheus.io/port"
            wrong = f"is {scraped}, and the container's port metrics is {port}"
            yield trainer.of_job(field, wrong, f"write {port}")
        if served is not None and port is not None and served != str(port):
            wrong = f"--metrics-port={served}, and the container's port metrics is {port}"
            yield trainer.of_container("args", wrong, f"write --metrics-port={port}")


def values(cluster: Cluster) -> Iterator[Finding]:
    """What ``keepstep-values`` says is what the trainer is told, and can be done."""
    for shared in [one for one in cluster.of_kind("ConfigMap") if one.name == VALUES]:
        data: Body = shared.get("data") or {}
        for trainer in cluster.running("run"):
            for key, told in _told(trainer).items():
                if key in data and told is not None and str(data[key]) != told:
                    yield shared.finding(
                        f"data.{key}",
                        f"is {data[key]}, and {trainer.manifest.title} has {told}",
                        "change it here only, and name k8s/agree below transformers",
                    )
        yield from _order(shared, data)


OF_THE_CLUSTER = (
    headless_service,
    selectors,
    budget,
    references,
    one_uri,
    slots,
    metrics_port,
    values,
)


def _drained_on_notice(trainer: Workload) -> str | None:
    """The label of the nodes it asks for, if those are drained before they are taken away."""
    field = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    chosen = list((trainer.pod.get("nodeSelector") or {}).items())
    for term in items(trainer.pod, f"{field}.nodeSelectorTerms"):
        for expression in items(term, "matchExpressions"):
            if expression.get("operator") == "In":
                chosen += [(expression.get("key"), one) for one in expression.get("values") or []]
    return next((label for label, value in chosen if _DRAINED.get(label) == value), None)


def _after(words: Sequence[str], verb: str) -> Sequence[str]:
    """Arguments of a verb that are no options."""
    rest = list(words)[list(words).index(verb) + 1 :] if verb in words else []
    return [word for word in rest if not word.startswith("-")]


def _recipes(cluster: Cluster, trainer: Workload) -> Iterator[tuple[Manifest, str]]:
    """ConfigMaps with the recipes among its arguments, and each recipe's key."""
    for path in (PurePosixPath(word) for word in trainer.words if word.endswith(".toml")):
        name = at(trainer.volume_of(str(path)), "configMap.name")
        for found in cluster.of_kind("ConfigMap"):
            if found.name == name and path.name in (found.get("data") or {}):
                yield found, path.name


def _batch(recipe: str, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Samples of a batch and of a slot, as far as both are written out."""
    try:
        found = tomllib.loads(recipe).get("batch", {})
        sizes = [
            int(environment.get(f"KEEPSTEP_BATCH__{key.upper()}", found[key]))
            for key in ("global_size", "microbatch")
        ]
    except (tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError, ValueError):
        return None  # the trainer says what is wrong with it
    return (sizes[0], sizes[1]) if sizes[1] > 0 else None


def _told(trainer: Workload) -> Mapping[str, str | None]:
    least, most = trainer.nodes or (None, None)
    shm = trainer.mount_at(SHARED_MEMORY)
    environment = trainer.environment
    return {
        "uri": environment.get("KEEPSTEP_URI"),
        "min_nodes": None if least is None else str(least),
        "max_nodes": None if most is None else str(most),
        "spare_nodes": _text(trainer.spec.get("maxFailedIndexes")),
        "deadline_seconds": _text(trainer.spec.get("activeDeadlineSeconds")),
        "processes": trainer.option("--nproc-per-node"),
        "stop_seconds": environment.get("KEEPSTEP_PREEMPTION__GRACE_SECONDS"),
        "grace_seconds": str(trainer.pod.get("terminationGracePeriodSeconds")),
        "shm": at(shm, "emptyDir.sizeLimit") if shm else None,
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _order(shared: Manifest, data: Body) -> Iterator[Finding]:
    """A save must fit into the time to stop, and that into the pod's."""
    times = [(name, data.get(name)) for name in ("save_seconds", "stop_seconds", "grace_seconds")]
    for (shorter, less), (longer, more) in pairwise(times):
        if less is None or more is None:
            continue
        try:
            fits_in = float(less) < float(more)
        except ValueError:
            yield shared.finding(f"data.{shorter}", f"{less} or {more} is no number", "write one")
            continue
        if not fits_in:
            wrong = f"is {more}, and {shorter} is {less}"
            yield shared.finding(f"data.{longer}", wrong, f"write more than {less}")
