"""Network policies add up: a pod that any of them selects gets what at least one of them admits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from keepstep.k8s.manifest import Body, Finding, Manifest, at, fits, items
from keepstep.k8s.workload import Cluster, Workload

_INGRESS, _EGRESS = "Ingress", "Egress"
_PEERS = {_INGRESS: "from", _EGRESS: "to"}
_NAMESPACE = "kubernetes.io/metadata.name"
_DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class _Traffic:
    """What has to get through."""

    peer: Workload | None
    """Whom it comes from, or goes to; none: the cluster's DNS."""
    port: int | None
    """None: all of them."""
    protocol: str = "TCP"


def store_ingress(cluster: Cluster) -> Iterator[Finding]:
    for store, trainer, port in _pairs(cluster):
        wrong = f"trainers do not get through to port {port}, where the store listens"
        yield from _closed(cluster, store, _INGRESS, _Traffic(trainer, port), wrong)


def store_egress(cluster: Cluster) -> Iterator[Finding]:
    for store, trainer, port in _pairs(cluster):
        wrong = f"trainers do not get out to port {port} of the store"
        yield from _closed(cluster, trainer, _EGRESS, _Traffic(store, port), wrong)


def between_trainers(cluster: Cluster) -> Iterator[Finding]:
    """gloo and NCCL choose their ports."""
    for trainer in cluster.running("run"):
        for direction in _PEERS:
            wrong = "trainers do not reach each other at all ports"
            yield from _closed(cluster, trainer, direction, _Traffic(trainer, None), wrong)


def names(cluster: Cluster) -> Iterator[Finding]:
    for trainer in cluster.running("run"):
        wrong = "trainers do not get out to the cluster's DNS"
        yield from _closed(cluster, trainer, _EGRESS, _Traffic(None, _DNS_PORT, "UDP"), wrong)


OF_THE_CLUSTER = (store_ingress, store_egress, between_trainers, names)


def _pairs(cluster: Cluster) -> Iterator[tuple[Workload, Workload, int]]:
    """Stores and trainers, and the port where they meet."""
    for store in cluster.running("store"):
        port = store.option("--port") or "29400"
        for trainer in cluster.running("run") if port.isdecimal() else ():
            yield store, trainer, int(port)


def _closed(
    cluster: Cluster, pod: Workload, direction: str, traffic: _Traffic, wrong: str
) -> Iterator[Finding]:
    """A finding, if policies close this direction of the pod and none admits the traffic."""
    policies = [one for one in cluster.of_kind("NetworkPolicy") if _closes(one, pod, direction)]
    rules = [rule for one in policies for rule in items(one.body, f"spec.{direction.lower()}")]
    if policies and not any(_admits(rule, direction, pod, traffic) for rule in rules):
        port = "" if traffic.port is None else f", port {traffic.port} ({traffic.protocol})"
        peer = "any namespace" if traffic.peer is None else f"labels {dict(traffic.peer.labels)}"
        instead = f"add a rule {_PEERS[direction]} pods of {peer}{port}"
        yield policies[0].finding(f"spec.{direction.lower()}", wrong, instead)


def _closes(policy: Manifest, pod: Workload, direction: str) -> bool:
    default = [_INGRESS, *([_EGRESS] if policy.get("spec.egress") else [])]
    return (
        policy.get("metadata.namespace") == pod.manifest.get("metadata.namespace")
        and fits(policy.get("spec.podSelector") or {}, pod.labels)
        and direction in (policy.get("spec.policyTypes") or default)
    )


def _admits(rule: Body, direction: str, pod: Workload, traffic: _Traffic) -> bool:
    target = pod if direction == _INGRESS else traffic.peer
    peers, ports = items(rule, _PEERS[direction]), items(rule, "ports")
    return (not peers or any(_is_of(peer, traffic.peer) for peer in peers)) and (
        not ports or any(_includes(entry, traffic, target) for entry in ports)
    )


def _is_of(peer: Body, workload: Workload | None) -> bool:
    """Whether a rule's peer may be that one; what cannot be known here is believed."""
    if "ipBlock" in peer:
        return True
    if workload is None:
        return "namespaceSelector" in peer
    namespace = at(peer, "namespaceSelector.matchLabels") or {}
    own = workload.manifest.get("metadata.namespace")
    if _NAMESPACE in namespace and namespace[_NAMESPACE] != own:
        return False
    return fits(peer.get("podSelector") or {}, workload.labels)


def _includes(entry: Body, traffic: _Traffic, target: Workload | None) -> bool:
    """Whether an entry of ``ports`` holds the port, by number, name or range."""
    if entry.get("protocol", "TCP") != traffic.protocol:
        return False
    first: Any = entry.get("port")
    if isinstance(first, str) and target is not None:
        first = _number(items(target.container, "ports"), first)
    if first is None:
        return "port" not in entry
    last = entry.get("endPort", first)
    if traffic.port is None:
        return bool(first <= 1024 and last == 65535)
    return bool(first <= traffic.port <= last)


def _number(ports: Sequence[Body], name: str) -> Any:
    """Of a container's port; ``None`` if there is none of that name."""
    return next((one.get("containerPort") for one in ports if one.get("name") == name), None)
