"""All rules, applied to all that was read."""

from collections.abc import Callable, Iterator, Sequence

from keepstep.k8s import (
    rules_cluster,
    rules_extensions,
    rules_job,
    rules_network,
    rules_pod,
    rules_rights,
    rules_store,
)
from keepstep.k8s.manifest import Finding, Manifest
from keepstep.k8s.workload import Cluster, Workload

Rule = Callable[[Workload], Iterator[Finding]]
ClusterRule = Callable[[Cluster], Iterator[Finding]]

OF_A_TRAINER: Sequence[Rule] = (*rules_job.OF_A_TRAINER, *rules_pod.OF_A_TRAINER)
OF_A_STORE: Sequence[Rule] = rules_store.OF_A_STORE
OF_LONG_RUNNING: Sequence[Rule] = rules_pod.OF_LONG_RUNNING
OF_ANY: Sequence[Rule] = (*rules_job.OF_ANY, *rules_rights.OF_ANY)
OF_THE_CLUSTER: Sequence[ClusterRule] = (
    *rules_store.OF_THE_CLUSTER,
    *rules_cluster.OF_THE_CLUSTER,
    *rules_network.OF_THE_CLUSTER,
    *rules_extensions.OF_THE_CLUSTER,
)

_SPECIAL: dict[str, Sequence[Rule]] = {
    "run": (*OF_A_TRAINER, *OF_LONG_RUNNING),
    "store": (*OF_A_STORE, *OF_LONG_RUNNING),
}


def check_manifests(manifests: Sequence[Manifest]) -> list[Finding]:
    """Everything wrong with rendered manifests, as far as it can be seen without a cluster."""
    cluster = Cluster(manifests)
    findings = [finding for rule in OF_THE_CLUSTER for finding in rule(cluster)]
    for workload in cluster.workloads:
        special = _SPECIAL.get(workload.verb, ())
        for rule in (*special, *OF_ANY):
            findings += rule(workload)
    return findings
