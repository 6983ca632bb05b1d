"""The rendezvous store must be alone, must be found, and must outlive the nodes that train."""

from collections.abc import Iterator

from keepstep.k8s.manifest import Body, Finding, Manifest, at, fits, items, named
from keepstep.k8s.workload import Cluster, Workload

_DEFAULT_PORT = "29400"

_SPOT_LABELS = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""How nodes are labeled that may be taken away."""


def not_on_spot(workload: Workload) -> Iterator[Finding]:
    """Every alternative of the node affinity must exclude every kind of preemptible node."""
    field = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    terms = items(workload.pod, f"{field}.nodeSelectorTerms")
    selector = workload.pod.get("nodeSelector") or {}
    for label, value in _SPOT_LABELS.items():
        if (
            selector.get(label) == value
            or not terms
            or not all(_keeps_off(t, label) for t in terms)
        ):
            yield workload.of_pod(
                field,
                f"the store may run on a preemptible node ({label}: {value})",
                f"add {{key: {label}, operator: NotIn, values: [{value}]}} to matchExpressions",
            )
            return


def tolerates_no_spot(workload: Workload) -> Iterator[Finding]:
    keys = [one.get("key") for one in items(workload.pod, "tolerations")]
    for key in [key for key in keys if key is None or key in _SPOT_LABELS]:
        wrong = f"the store tolerates the taint of preemptible nodes ({key or 'all taints'})"
        yield workload.of_pod("tolerations", wrong, "leave it out")


def alone(workload: Workload) -> Iterator[Finding]:
    if workload.manifest.kind != "Deployment":
        return
    if workload.spec.get("replicas", 1) != 1:
        wrong = f"is {workload.spec['replicas']}: nodes would meet at different stores"
        yield workload.of_job("replicas", wrong, "write 1")
    if at(workload.spec, "strategy.type") != "Recreate":
        wrong = "lets a second store start beside the first"
        yield workload.of_job("strategy.type", wrong, "write Recreate")


def endpoint(cluster: Cluster) -> Iterator[Finding]:
    """What trainers are told must be a Service of that port, and lead to a store that listens."""
    services = {one.name: one for one in cluster.of_kind("Service")}
    stores = cluster.running("store")
    for trainer in cluster.workloads:
        if trainer.verb != "run" or (told := trainer.option("--rdzv-endpoint")) is None:
            continue
        host, _, port = told.partition(":")
        service = services.get(host.partition(".")[0])
        if service is None:
            wrong, instead = (
                f"--rdzv-endpoint={told}: no Service is called {host}",
                "name the store's",
            )
            yield trainer.of_container("args", wrong, instead)
            continue
        yield from _port_of(trainer, service, port or _DEFAULT_PORT)
        if not any(fits(service.get("spec.selector"), store.labels) for store in stores):
            wrong = "selects no pod that runs keepstep store"
            yield service.finding("spec.selector", wrong, "write the labels of the store's pods")


def listening(cluster: Cluster) -> Iterator[Finding]:
    """The Service's target must be the port that the store is told to listen on."""
    for store in cluster.running("store"):
        told = store.option("--port") or _DEFAULT_PORT
        ports = items(store.container, "ports")
        if ports and told not in [str(port.get("containerPort")) for port in ports]:
            wrong = f"none is {told}, where keepstep store listens"
            yield store.of_container("ports", wrong, f"write containerPort: {told}")
        for service in cluster.of_kind("Service"):
            if not fits(service.get("spec.selector"), store.labels):
                continue
            for entry in items(service.body, "spec.ports"):
                target = entry.get("targetPort", entry.get("port"))
                number = named(ports, target).get("containerPort", target)
                if str(number) != told:
                    wrong = f"leads to {number}, and keepstep store listens on {told}"
                    yield service.finding("spec.ports", wrong, f"write targetPort: {told}")


def protected(cluster: Cluster) -> Iterator[Finding]:
    """A drain must not take the store away."""
    budgets = cluster.of_kind("PodDisruptionBudget")
    for store in cluster.running("store"):
        ours = [one for one in budgets if fits(one.get("spec.selector"), store.labels)]
        if not any(one.get("spec.maxUnavailable") == 0 for one in ours):
            yield store.manifest.finding(
                f"{store.place}.template.metadata.labels",
                "no PodDisruptionBudget protects the store",
                "add one with its labels and maxUnavailable: 0",
            )


OF_A_STORE = (not_on_spot, tolerates_no_spot, alone)
OF_THE_CLUSTER = (endpoint, listening, protected)


def _keeps_off(term: Body, label: str) -> bool:
    expression = next((e for e in items(term, "matchExpressions") if e.get("key") == label), {})
    value = _SPOT_LABELS[label]
    match expression.get("operator"):
        case "DoesNotExist":
            return True
        case "NotIn":
            return value in (expression.get("values") or [])
        case "In":
            return value not in (expression.get("values") or [])
        case _:
            return False


def _port_of(trainer: Workload, service: Manifest, port: str) -> Iterator[Finding]:
    ports = [str(entry.get("port")) for entry in items(service.body, "spec.ports")]
    if port not in ports:
        wrong = f"--rdzv-endpoint asks for port {port}, and {service.title} has {', '.join(ports)}"
        yield trainer.of_container("args", wrong, f"write port {ports[0] if ports else port}")
