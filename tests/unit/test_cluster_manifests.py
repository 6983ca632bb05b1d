"""How a cluster of processes reads manifests: environment, names, volumes, nodes that suit."""

from pathlib import Path
from typing import Any

import pytest

from keepstep.testing.cluster.env import PodFields, container_environ, expand, service_environ
from keepstep.testing.cluster.hosts import Endpoint, hosts_text, write_hosts
from keepstep.testing.cluster.manifests import (
    Manifests,
    bytes_of,
    manifests_from,
    parse_manifests,
    set_environ,
)
from keepstep.testing.cluster.node import fits, toleration_seconds
from keepstep.testing.cluster.volumes import Mount, make_volumes, mounts_of

KEY = "batch.kubernetes.io/job-completion-index"
FIELDS = PodFields(
    name="job-1-abcde",
    namespace="train",
    uid="u-1",
    node_name="spot-1",
    pod_ip="10.0.0.7",
    labels={"app": "trainer"},
    annotations={KEY: "1"},
)
SPOT = {"cloud.google.com/gke-spot": "true"}
SPOT_TAINT = {"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NoSchedule"}


def sources() -> Manifests:
    return manifests_from(
        [
            {"kind": "ConfigMap", "metadata": {"name": "cfg"}, "data": {"A": "1", "B": "x y"}},
            {"kind": "Secret", "metadata": {"name": "key"}, "data": {"K": "c2VjcmV0"}},
        ]
    )


def environ_of(*env: dict[str, Any], env_from: tuple[dict[str, Any], ...] = ()) -> dict[str, str]:
    container = {"name": "c", "env": list(env), "envFrom": list(env_from)}
    return container_environ(container, FIELDS, sources(), {})


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ({"fieldRef": {"fieldPath": "metadata.name"}}, "job-1-abcde"),
        ({"fieldRef": {"fieldPath": "status.podIP"}}, "10.0.0.7"),
        ({"fieldRef": {"fieldPath": f"metadata.annotations['{KEY}']"}}, "1"),
        ({"fieldRef": {"fieldPath": "metadata.labels['app']"}}, "trainer"),
        ({"configMapKeyRef": {"name": "cfg", "key": "B"}}, "x y"),
        ({"secretKeyRef": {"name": "key", "key": "K"}}, "secret"),
    ],
)
def test_values_come_from_where_the_manifest_says(source: dict[str, Any], value: str) -> None:
    assert environ_of({"name": "V", "valueFrom": source}) == {"V": value}


def test_variables_name_earlier_ones_and_dollars_can_be_written() -> None:
    environ = environ_of(
        {"name": "ONE", "value": "$(A)-$(LATER)-$$(A)"},
        {"name": "LATER", "value": "$(ONE)"},
        env_from=({"configMapRef": {"name": "cfg"}},),
    )
    assert environ["ONE"] == "1-$(LATER)-$(A)"
    assert environ["LATER"] == environ["ONE"]


def test_a_later_source_wins_and_a_prefix_is_put_before_names() -> None:
    references = ({"configMapRef": {"name": "cfg"}, "prefix": "P_"}, {"secretRef": {"name": "key"}})
    environ = environ_of({"name": "K", "value": "mine"}, env_from=references)
    assert environ == {"P_A": "1", "P_B": "x y", "K": "mine"}


def test_what_is_missing_is_an_error_unless_it_is_optional() -> None:
    missing = {"name": "V", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "Z"}}}
    with pytest.raises(KeyError, match="cfg"):
        environ_of(missing)
    missing["valueFrom"]["configMapKeyRef"]["optional"] = True  # type: ignore[index]
    assert environ_of(missing) == {}
    assert environ_of(env_from=({"secretRef": {"name": "none", "optional": True}},)) == {}
    with pytest.raises(ValueError, match=r"spec\.unheard"):
        environ_of({"name": "V", "valueFrom": {"fieldRef": {"fieldPath": "spec.unheard"}}})


def test_arguments_are_expanded_and_unknown_names_stay() -> None:
    assert expand("--at=$(IP):$(PORT)", {"IP": "10.0.0.1"}) == "--at=10.0.0.1:$(PORT)"


def test_pods_are_told_of_services_with_an_address() -> None:
    service = {
        "metadata": {"name": "my-store"},
        "spec": {"ports": [{"port": 29400, "name": "rendezvous"}]},
    }
    environ = service_environ([service], {"my-store": "10.96.0.1"})
    assert environ["MY_STORE_SERVICE_HOST"] == "10.96.0.1"
    assert environ["MY_STORE_PORT"] == "tcp://10.96.0.1:29400"
    assert environ["MY_STORE_SERVICE_PORT_RENDEZVOUS"] == "29400"
    assert service_environ([service], {}) == {}


def test_names_of_pods_and_services_are_those_of_the_cluster() -> None:
    headless = {"metadata": {"name": "tr"}, "spec": {"clusterIP": "None", "selector": {"a": "t"}}}
    other = {"metadata": {"name": "store"}, "spec": {"selector": {"a": "s"}}}
    ready = Endpoint("10.0.0.1", "job-0", "tr", {"a": "t"}, is_ready=True)
    starting = Endpoint("10.0.0.2", "job-1", "tr", {"a": "t"}, is_ready=False)
    arguments = ([headless, other], [ready, starting], {"store": "10.96.0.1"}, "ns")
    lines = hosts_text(*arguments).splitlines()
    words = [line.split() for line in lines]
    assert ["10.0.0.1", "job-0.tr.ns.svc.cluster.local", "job-0.tr"] in [w[:3] for w in words]
    assert ["10.96.0.1", "store.ns.svc.cluster.local", "store"] in [w[:3] for w in words]
    assert not any("job-1" in line for line in lines)
    headless["spec"]["publishNotReadyAddresses"] = True  # type: ignore[index]
    assert "job-1.tr" in hosts_text(*arguments)


def test_a_hosts_file_is_changed_in_place_and_never_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    write_hosts(path, "10.0.0.1 a\n" * 500)
    inode, size = path.stat().st_ino, path.stat().st_size
    write_hosts(path, "10.0.0.2 b\n")
    assert (path.stat().st_ino, path.stat().st_size) == (inode, size)
    assert path.read_text().split() == ["10.0.0.2", "b"]


def test_volumes_are_directories_with_what_belongs_in_them(tmp_path: Path) -> None:
    manifests = sources()
    manifests.objects["PersistentVolumeClaim", "runs"] = {"metadata": {"name": "runs"}}
    pod_spec = {
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            {"name": "cfg", "configMap": {"name": "cfg", "items": [{"key": "A", "path": "d/a"}]}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}},
            {"name": "host", "hostPath": {"path": str(tmp_path)}},
        ]
    }
    volumes = make_volumes(pod_spec, manifests, tmp_path / "pod", tmp_path / "claims")
    container = {
        "name": "c",
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "cfg", "mountPath": "/etc/x", "readOnly": True},
            {"name": "runs", "mountPath": "/runs", "subPath": "one"},
            {"name": "host", "mountPath": "/host/"},
        ],
    }
    shm, config, runs, host = mounts_of(container, volumes)
    assert shm == Mount("/dev/shm", None, size_bytes=64 << 20)
    assert config.is_read_only
    assert Path(config.source or "", "d/a").read_text() == "1"
    assert Path(runs.source or "") == tmp_path / "claims/runs/one"
    assert host == Mount("/host", str(tmp_path))
    with pytest.raises(KeyError, match="nowhere"):
        mounts_of({"name": "c", "volumeMounts": [{"name": "nowhere", "mountPath": "/x"}]}, volumes)


def test_a_claim_or_a_kind_of_volume_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for volume, said in (
        ({"name": "v", "persistentVolumeClaim": {"claimName": "none"}}, "none"),
        ({"name": "v", "nfs": {"server": "x", "path": "/"}}, "nfs"),
    ):
        with pytest.raises((KeyError, ValueError), match=said):
            make_volumes({"volumes": [volume]}, sources(), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("labels", "pod_spec", "suits"),
    [
        ({}, {}, True),
        (SPOT, {"nodeSelector": SPOT}, False),  # its taint is not tolerated
        (SPOT, {"tolerations": [{"key": "cloud.google.com/gke-spot", "operator": "Exists"}]}, True),
        (SPOT, {"tolerations": [{"operator": "Exists"}]}, True),
        ({}, {"nodeSelector": SPOT}, False),
    ],
)
def test_pods_go_where_they_may(
    labels: dict[str, str], pod_spec: dict[str, Any], suits: bool
) -> None:
    assert fits(labels, [SPOT_TAINT] if labels else [], pod_spec) is suits


@pytest.mark.parametrize(
    ("operator", "values", "suits"),
    [
        ("In", ["true"], True),
        ("NotIn", ["true"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ],
)
def test_required_affinity_is_obeyed(operator: str, values: list[str], suits: bool) -> None:
    expression = {"key": "cloud.google.com/gke-spot", "operator": operator, "values": values}
    required = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    rule = {"requiredDuringSchedulingIgnoredDuringExecution": required}
    assert fits(SPOT, [], {"affinity": {"nodeAffinity": rule}}) is suits


def test_a_pod_stays_on_a_silent_node_as_long_as_it_says() -> None:
    key = "node.kubernetes.io/unreachable"
    toleration = {"key": key, "operator": "Exists", "effect": "NoExecute"}
    assert toleration_seconds({}, key) == 300
    assert toleration_seconds({"tolerations": [toleration]}, key) is None
    assert toleration_seconds({"tolerations": [toleration | {"tolerationSeconds": 20}]}, key) == 20


@pytest.mark.parametrize(
    ("quantity", "expected"), [("1Gi", 2**30), ("64Mi", 64 << 20), ("2G", 2 * 10**9), (1000, 1000)]
)
def test_quantities_are_bytes(quantity: str | int, expected: int) -> None:
    assert bytes_of(quantity) == expected


def test_manifests_are_found_by_name_and_what_is_not_run_is_listed() -> None:
    text = """
kind: Deployment
metadata: {name: d, namespace: train}
spec: {template: {spec: {containers: [{name: c, env: [{name: A, value: old}]}]}}}
---
kind: PodDisruptionBudget
metadata: {name: p}
"""
    manifests = parse_manifests(text)
    assert manifests.left_out == ["PodDisruptionBudget/p"]
    assert manifests.namespace == "train"
    container = manifests.container("Deployment", "d")
    set_environ(container, A="new", B="2")
    assert container["env"] == [{"name": "A", "value": "new"}, {"name": "B", "value": "2"}]
    with pytest.raises(KeyError, match="no container 'x'"):
        manifests.container("Deployment", "d", "x")
    with pytest.raises(ValueError, match="not a manifest"):
        parse_manifests("{a: 1}")


def test_an_empty_term_of_an_affinity_matches_no_node() -> None:
    rule = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}
    assert not fits(SPOT, [], {"affinity": {"nodeAffinity": rule}})
