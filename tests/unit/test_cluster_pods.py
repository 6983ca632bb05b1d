"""Tiny pods in a cluster of processes: what kubelet, controllers and nodes do to them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keepstep.testing.cluster import Cluster, Times, parse_manifests
from keepstep.testing.cluster.pod import DISRUPTION, Pod
from keepstep.testing.networks import can_use_namespaces

needs_namespaces = pytest.mark.skipif(
    not can_use_namespaces(), reason="pods in namespaces need root and iproute2"
)

_JOB = """
kind: Service
metadata: {name: pods}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: job}}
---
kind: ConfigMap
metadata: {name: cfg}
data: {greeting: hello}
---
kind: PersistentVolumeClaim
metadata: {name: runs}
---
kind: Job
metadata: {name: job}
spec:
  completionMode: Indexed
  completions: 2
  parallelism: 2
  backoffLimitPerIndex: 1
  podReplacementPolicy: Failed
  podFailurePolicy:
    rules:
    - {action: Ignore, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
    - {action: FailJob, onExitCodes: {operator: In, values: [64]}}
  template:
    metadata: {labels: {app: job}}
    spec:
      subdomain: pods
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      tolerations:
      - key: node.kubernetes.io/unreachable
        operator: Exists
        tolerationSeconds: 20
      securityContext: {runAsUser: 1234}
      containers:
      - name: main
        securityContext: {readOnlyRootFilesystem: true}
        env:
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: GREETING, valueFrom: {configMapKeyRef: {name: cfg, key: greeting}}}
        command: [sh, -c]
        volumeMounts:
        - {name: runs, mountPath: /runs}
        - {name: tmp, mountPath: /tmp}
        - {name: cfg, mountPath: /etc/cfg}
      volumes:
      - {name: runs, persistentVolumeClaim: {claimName: runs}}
      - {name: tmp, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
      - {name: cfg, configMap: {name: cfg}}
"""
_STAYS = "echo up > /runs/$HOSTNAME; trap 'echo told >> /runs/$HOSTNAME; exit 85' TERM; "
_STAYS += "sleep 60 & wait"

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Of the job above, or of other manifests, with a script for its container."""
    made: list[Cluster] = []

    def make(script: str, text: str = _JOB, **changes: Any) -> Cluster:
        manifests = parse_manifests(text)
        container = manifests.container("Job", "job")
        container["args"] = [script]
        container |= changes
        cluster = Cluster(
            manifests, tmp_path / f"cluster-{len(made)}", times=Times(seconds_scale=0.01)
        )
        made.append(cluster)
        cluster.step()
        return cluster

    yield make
    for cluster in made:
        cluster.close()


def wait_for_files(cluster: Cluster, *names: str) -> None:
    runs = cluster.directory / "claims" / "runs"
    cluster.wait_until(lambda: all((runs / name).exists() for name in names), f"files {names}", 30)


def wait_for_end(cluster: Cluster, pod: Pod) -> None:
    cluster.wait_until(lambda: pod.phase.is_final, f"the end of {pod.name}", 30)


@needs_namespaces
def test_a_container_sees_what_its_manifest_says(make_cluster: MakeCluster) -> None:
    script = (
        'echo "$(id -u) $$$$ $(hostname) $GREETING $(cat /etc/cfg/greeting)"; '
        "echo $POD_IP > /runs/address-$JOB_COMPLETION_INDEX; "
        "grep -q job-1.pods /etc/hosts || exit 3; "
        "touch /not-here 2> /dev/null && exit 4; "
        "head -c 2000000 /dev/zero > /tmp/big 2> /dev/null && exit 5; "
        "echo fine > /dev/termination-log"
    )
    cluster = make_cluster(script)
    assert cluster.wait_for_job("job", 30) == "Complete", cluster.report()
    pod = cluster.pod("job", 1)
    assert cluster.log(pod).split() == ["1234", "1", "job-1", "hello", "hello"]
    address = (cluster.directory / "claims/runs/address-1").read_text().strip()
    assert address == pod.identity.address
    text = cluster.describe(pod)
    assert "Message:      fine" in text
    assert "Exit Code:    0" in text
    assert not Path("/not-here").exists()


@needs_namespaces
def test_a_preempted_pod_is_told_is_not_charged_and_is_replaced_elsewhere(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(_STAYS)
    wait_for_files(cluster, "job-0", "job-1")
    pod = cluster.pod("job", 0)
    cluster.preempt(cluster.node_of(pod))
    cluster.wait_until(lambda: cluster.pod("job", 0) is not pod, "a replacement", 30)
    assert pod.facts.exit_codes == {"main": 85}
    assert pod.conditions[DISRUPTION].reason == "TerminationByKubelet"
    assert cluster.job_status("job").ignored == {0: 1}
    assert cluster.job_status("job").failed == 0
    assert cluster.pod("job", 0).identity.node_name != pod.identity.node_name
    assert "told" in (cluster.directory / "claims/runs/job-0").read_text()
    cluster.wait_until(lambda: cluster.node_of(pod).is_gone, "the node is gone", 30)


@needs_namespaces
def test_a_pod_that_does_not_heed_sigterm_is_killed_after_its_grace(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster("trap '' TERM; echo up > /runs/$HOSTNAME; while :; do sleep 1; done")
    wait_for_files(cluster, "job-0")
    pod = cluster.pod("job", 0)
    cluster.delete(pod)
    wait_for_end(cluster, pod)
    assert pod.facts.exit_codes == {"main": 137}
    assert DISRUPTION not in pod.conditions
    assert cluster.job_status("job").counted == {0: 1}  # a plain deletion has no excuse


@needs_namespaces
def test_a_vanished_node_says_nothing_and_its_pod_is_replaced_when_it_has_been_given_up(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(_STAYS)
    wait_for_files(cluster, "job-0", "job-1")
    pod = cluster.pod("job", 0)
    cluster.power_off(cluster.node_of(pod))
    cluster.wait_until(lambda: cluster.pod("job", 0) is not pod, "a replacement", 30)
    assert pod.facts.exit_codes == {}
    assert pod.conditions[DISRUPTION].reason == "DeletionByTaintManager"
    assert cluster.events.reasons(f"Node/{pod.identity.node_name}") == [
        "NodeNotReady",
        "DeletingNode",
    ]
    assert "told" not in (cluster.directory / "claims/runs/job-0").read_text()
    assert cluster.job_status("job").failed == 0


@needs_namespaces
def test_an_exit_code_of_the_policy_fails_the_job_and_the_rest_is_told(
    make_cluster: MakeCluster,
) -> None:
    script = f"[ $JOB_COMPLETION_INDEX = 1 ] || {{ {_STAYS}; }}; "
    cluster = make_cluster(script + "while [ ! -e /runs/job-0 ]; do sleep 0.05; done; exit 64")
    assert cluster.wait_for_job("job", 30) == "Failed"
    final = cluster.job_status("job").final
    assert final is not None
    assert final.reason == "PodFailurePolicy"
    assert cluster.pod("job", 0).facts.exit_codes == {"main": 85}
    assert len(cluster.pods) == 2


@needs_namespaces
def test_prestop_comes_first_and_a_failing_liveness_probe_ends_the_container(
    make_cluster: MakeCluster,
) -> None:
    probe = {"exec": {"command": ["test", "!", "-e", "/runs/sick"]}, "periodSeconds": 0.1}
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /runs/job-0"]}}}
    cluster = make_cluster(_STAYS, livenessProbe=probe | {"failureThreshold": 2}, lifecycle=hook)
    wait_for_files(cluster, "job-0", "job-1")
    pod = cluster.pod("job", 0)
    (cluster.directory / "claims/runs/sick").touch()
    wait_for_end(cluster, pod)
    assert "Unhealthy" in cluster.events.reasons(f"Pod/{pod.name}")
    text = (cluster.directory / "claims/runs/job-0").read_text()
    assert text.split()[0] == "up"
    assert text.index("hook") < text.index("told")


_STORE = (
    _JOB
    + """
---
kind: Service
metadata: {name: store}
spec: {selector: {app: store}, ports: [{port: 8000}]}
---
kind: Deployment
metadata: {name: store}
spec:
  replicas: 1
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: store}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        command: [tini, --, python, -m, http.server, "8000"]
        readinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 0.1}
"""
)


@needs_namespaces
def test_a_service_keeps_its_address_while_its_pod_is_rescheduled(
    make_cluster: MakeCluster,
) -> None:
    ask = (
        "while [ ! -e /runs/end ]; do "
        "python -c 'import socket; socket.create_connection((\"store\", 8000), 2)' 2> /dev/null "
        "&& touch /runs/up-$(cat /runs/turn) || touch /runs/refused-$(cat /runs/turn); done"
    )
    cluster = make_cluster(ask, _STORE)
    runs = cluster.directory / "claims/runs"
    (runs / "turn").write_text("1")
    wait_for_files(cluster, "up-1")
    store = cluster.pod("store")
    cluster.evict(store)
    cluster.wait_until(lambda: cluster.pod("store") is not store, "another store", 30)
    (runs / "turn").write_text("2")
    wait_for_files(cluster, "up-2")
    assert cluster.pod("store").identity.address != store.identity.address
    (runs / "end").touch()
    assert cluster.wait_for_job("job", 30) == "Complete"


def test_without_root_pods_are_processes_on_loopback(tmp_path: Path) -> None:
    manifests = parse_manifests(_STORE)
    container = manifests.container("Job", "job")
    del container["command"]
    container["command"] = ["cp", "/etc/cfg/greeting", "/runs/greeting"]
    directory = tmp_path / "cluster"
    times = Times(seconds_scale=0.01)
    with Cluster(manifests, directory, times=times, is_contained=False) as cluster:
        assert cluster.wait_for_job("job", 30) == "Complete", cluster.report()
        assert (directory / "claims/runs/greeting").read_text() == "hello"
        cluster.wait_until(lambda: cluster.pod("store").is_ready, "the store serves", 30)
    assert cluster.pod("store").containers[0].inside is not None
