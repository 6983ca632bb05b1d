"""``keepstep doctor --k8s``: what is shipped passes, and each way to break it is found."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keepstep.errors import ExitCode
from keepstep.k8s.checkup import check_manifests
from keepstep.k8s.manifest import Manifest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[k8s]'")
BASE = Path(__file__).parents[2] / "k8s" / "base"
Keepstep = Callable[..., tuple[int, str, str]]
Objects = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def pristine() -> Objects:
    """The base as it is written. Its values agree before anything is copied, see another test."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    objects = {}
    for name in kustomization["resources"]:
        for body in yaml.safe_load_all((BASE / name).read_text()):
            label(body)
            objects[f"{body['kind']}/{body['metadata']['name']}"] = body
    objects["ConfigMap/keepstep-recipe"] = {
        "kind": "ConfigMap",
        "metadata": {"name": "keepstep-recipe"},
        "data": {"recipe.toml": (BASE / "recipe.toml").read_text()},
    }
    return objects


@pytest.fixture
def objects(pristine: Objects) -> Objects:
    return copy.deepcopy(pristine)


def label(body: Any) -> None:
    """As the kustomization does."""
    if isinstance(body, dict):
        if isinstance(body.get("containers"), list):
            return
        for key, value in body.items():
            if key == "template" and "spec" in value:
                labels = value.setdefault("metadata", {}).setdefault("labels", {})
                labels["app.kubernetes.io/name"] = "keepstep"
            label(value)


def findings(objects: Objects) -> list[str]:
    return [str(one) for one in check_manifests([Manifest("x", body) for body in objects.values()])]


def job(objects: Objects) -> dict[str, Any]:
    return objects["Job/keepstep-trainer"]["spec"]


def pod(objects: Objects) -> dict[str, Any]:
    return job(objects)["template"]["spec"]


def trainer(objects: Objects) -> dict[str, Any]:
    return pod(objects)["containers"][0]


def store(objects: Objects) -> dict[str, Any]:
    return objects["Deployment/keepstep-store"]["spec"]


def store_pod(objects: Objects) -> dict[str, Any]:
    return store(objects)["template"]["spec"]


def spec(objects: Objects, title: str) -> dict[str, Any]:
    return objects[title]["spec"]


def variable(objects: Objects, name: str) -> dict[str, Any]:
    return next(one for one in trainer(objects)["env"] if one["name"] == name)


def argument(objects: Objects, option: str, text: str) -> None:
    words = trainer(objects)["args"]
    words[:] = [f"{option}={text}" if w.startswith(f"{option}=") else w for w in words]


def without(entries: list[dict[str, Any]], key: str, value: str) -> None:
    entries[:] = [one for one in entries if one[key] != value]


def codes(objects: Objects, rule: int) -> list[int]:
    return job(objects)["podFailurePolicy"]["rules"][rule]["onExitCodes"]["values"]


def test_what_is_written_in_the_base_agrees(objects: Objects) -> None:
    assert findings(objects) == []


BROKEN: dict[str, tuple[Callable[[Objects], object], str]] = {
    "restart policy Always": (
        lambda o: pod(o).update(restartPolicy="Always"),
        r"template\.spec\.restartPolicy: is Always; write Never",
    ),
    "restart policy of a CronJob": (
        lambda o: spec(o, "CronJob/keepstep-prune")["jobTemplate"]["spec"]["template"][
            "spec"
        ].update(restartPolicy="OnFailure"),
        r"CronJob/keepstep-prune: .*restartPolicy: is OnFailure",
    ),
    "not indexed": (lambda o: job(o).pop("completionMode"), r"completionMode: is NonIndexed"),
    "more ranks than slots": (
        lambda o: argument(o, "--nproc-per-node", "8"),
        r"data\.recipe\.toml: .* 24 in slots of 2 is not enough for 32 ranks; write .* at least 64",
    ),
    "a batch that the environment makes smaller": (
        lambda o: trainer(o)["env"].append({"name": "KEEPSTEP_BATCH__GLOBAL_SIZE", "value": "4"}),
        r"a batch of 4 in slots of 2 is not enough for 4 ranks",
    ),
    "too few pods": (lambda o: job(o).update(parallelism=3), r"parallelism: is 3, .*write 4"),
    "too many may fail": (
        lambda o: job(o).update(maxFailedIndexes=3),
        r"maxFailedIndexes: is 3, with --nnodes=2:4; write 2",
    ),
    "more may fail than are left of a job that has shrunk": (
        lambda o: (
            variable(o, "JOB_NODES").update(value="1:4"),
            job(o).update(maxFailedIndexes=3),
        ),
        r"maxFailedIndexes: is 3, with --nnodes=1:4; write 1",
    ),
    "nodes the wrong way round": (
        lambda o: variable(o, "JOB_NODES").update(value="4:2"),
        r"--nnodes=4:2 allows no number",
    ),
    "replaced while terminating": (
        lambda o: job(o).pop("podReplacementPolicy"),
        r"podReplacementPolicy: is TerminatingOrFailed",
    ),
    "one budget for all": (
        lambda o: job(o).pop("backoffLimitPerIndex"),
        r"backoffLimitPerIndex: .*six failures",
    ),
    "no success policy": (lambda o: job(o).pop("successPolicy"), r"successPolicy: does not end"),
    "wrong exit code": (
        lambda o: codes(o, 0).remove(78),
        r"FailJob: lacks 78 \(CONFIG\); write .*\[64, 65, 66, 70, 77, 78, 93\]",
    ),
    "a code that a restart cures": (
        lambda o: codes(o, 0).append(75),
        r"FailJob: should not have 75",
    ),
    "a broken GPU of one machine ends the job": (
        lambda o: codes(o, 0).append(71),
        r"FailJob: should not have 71;",
    ),
    "preemption is charged": (
        lambda o: codes(o, 2).remove(86),
        r"Ignore: lacks 86 \(PREEMPTED_UNSAVED\)",
    ),
    "disruption is charged": (
        lambda o: job(o)["podFailurePolicy"]["rules"].pop(1),
        r"a preempted or evicted pod counts as a failure",
    ),
    "a rule that never has its turn": (
        lambda o: job(o)["podFailurePolicy"]["rules"].insert(
            0, {"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [1, 137]}}
        ),
        r"FailJob: lacks 64 \(USAGE\), 65",
    ),
    "crashes that are ignored": (
        lambda o: job(o)["podFailurePolicy"]["rules"][2]["onExitCodes"].update(operator="NotIn"),
        r"Ignore: lacks 85 .* should not have 1, .*137",
    ),
    "an index that fails at once": (
        lambda o: job(o)["podFailurePolicy"]["rules"].append(
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [88]}}
        ),
        r"FailIndex: should not have 88",
    ),
    "disruption is charged by an earlier rule": (
        lambda o: job(o)["podFailurePolicy"]["rules"].insert(
            0, {"action": "Count", "onExitCodes": {"operator": "In", "values": [143]}}
        ),
        r"a preempted or evicted pod counts as a failure; .* before others",
    ),
    "a rule for another container": (
        lambda o: job(o)["podFailurePolicy"]["rules"][0]["onExitCodes"].update(containerName="x"),
        r"rules\.0\.onExitCodes\.containerName: no container is called x; write trainer",
    ),
    "no deadline": (lambda o: job(o).pop("activeDeadlineSeconds"), r"activeDeadlineSeconds"),
    "grace too short": (
        lambda o: pod(o).update(terminationGracePeriodSeconds=60),
        r"terminationGracePeriodSeconds: is 60, and .* is 110: .*; write at least 115",
    ),
    "grace forgotten": (
        lambda o: pod(o).pop("terminationGracePeriodSeconds"),
        r"terminationGracePeriodSeconds: is 30",
    ),
    "more time than a spot node has": (
        lambda o: pod(o).update(nodeSelector={"cloud.google.com/gke-spot": "true"}),
        r"nodes with cloud\.google\.com/gke-spot leave 15 s",
    ),
    "shell form": (
        lambda o: trainer(o).update(command=["/bin/sh", "-c"], args=["keepstep run train.py"]),
        r"command: goes through a shell \(/bin/sh\)",
    ),
    "a hook before SIGTERM": (
        lambda o: trainer(o).update(lifecycle={"preStop": {"sleep": {"seconds": 5}}}),
        r"lifecycle\.preStop: uses up the time",
    ),
    "no shared memory": (
        lambda o: without(trainer(o)["volumeMounts"], "name", "shm"),
        r"/dev/shm is not mounted",
    ),
    "shared memory on disk": (
        lambda o: pod(o)["volumes"][0]["emptyDir"].pop("medium"),
        r"/dev/shm is not mounted",
    ),
    "shared memory without a limit": (
        lambda o: pod(o)["volumes"][0]["emptyDir"].pop("sizeLimit"),
        r"volumes: shm has no sizeLimit",
    ),
    "shared memory above the limit": (
        lambda o: pod(o)["volumes"][0]["emptyDir"].update(sizeLimit="4096Mi"),
        r"resources\.limits\.memory: is 4Gi, of which /dev/shm alone may take 4096Mi",
    ),
    "no probe": (lambda o: trainer(o).pop("livenessProbe"), r"livenessProbe: does not ask"),
    "slow to replace a lost node": (
        lambda o: pod(o)["tolerations"].pop(),
        r"told to go after 300 s only \(node\.kubernetes\.io/unreachable\)",
    ),
    "last words elsewhere": (
        lambda o: argument(o, "--termination-log", "/tmp/words"),
        r"read from /dev/termination-log, and --termination-log is /tmp/words",
    ),
    "one run id for ever": (
        lambda o: argument(o, "--rdzv-id", "main"),
        r"--rdzv-id=main is the same for the next Job",
    ),
    "names instead of addresses": (
        lambda o: argument(o, "--local-addr", "$(POD_NAME)"),
        r"--local-addr is \$\(POD_NAME\)",
    ),
    "checkpoints in an emptyDir": (
        lambda o: variable(o, "KEEPSTEP_URI").update(value="/work/run"),
        r"KEEPSTEP_URI=/work/run is in volume work, an emptyDir",
    ),
    "checkpoints in the container": (
        lambda o: variable(o, "KEEPSTEP_URI").update(value="file:///runs/main"),
        r"is in the container itself: checkpoints would go with the pod",
    ),
    "GPUs that nobody uses": (
        lambda o: trainer(o)["resources"]["limits"].update({"nvidia.com/gpu": 8}),
        r"--nproc-per-node=1, with 8 GPUs",
    ),
    "as root": (
        lambda o: pod(o)["securityContext"].pop("runAsNonRoot"),
        r"securityContext\.runAsNonRoot: is None; write true",
    ),
    "a root that can be written": (
        lambda o: trainer(o)["securityContext"].update(readOnlyRootFilesystem=False),
        r"readOnlyRootFilesystem: is False; write true",
    ),
    "capabilities": (
        lambda o: trainer(o)["securityContext"].pop("capabilities"),
        r"keeps capabilities",
    ),
    "no seccomp": (lambda o: pod(o)["securityContext"].pop("seccompProfile"), r"seccompProfile"),
    "nowhere to write": (
        lambda o: without(trainer(o)["volumeMounts"], "name", "tmp"),
        r"nothing is at /tmp",
    ),
    "static keys": (
        lambda o: trainer(o)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        r"env\.AWS_SECRET_ACCESS_KEY: a static key",
    ),
    "static keys from a Secret": (
        lambda o: spec(o, "CronJob/keepstep-verify")["jobTemplate"]["spec"]["template"]["spec"][
            "containers"
        ][0]["env"].append({"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {}}}),
        r"CronJob/keepstep-verify: .*AWS_ACCESS_KEY_ID: a static key",
    ),
    "a token for the cluster": (
        lambda o: pod(o).pop("automountServiceAccountToken"),
        r"automountServiceAccountToken",
    ),
    "service links": (lambda o: pod(o).pop("enableServiceLinks"), r"which are no settings"),
    "no limit of memory": (
        lambda o: trainer(o)["resources"].pop("limits"),
        r"resources\.limits\.memory: is missing",
    ),
    "the store on spot": (
        lambda o: store_pod(o).pop("affinity"),
        r"the store may run on a preemptible node",
    ),
    "the store on one kind of spot": (
        lambda o: without(
            store_pod(o)["affinity"]["nodeAffinity"][
                "requiredDuringSchedulingIgnoredDuringExecution"
            ]["nodeSelectorTerms"][0]["matchExpressions"],
            "key",
            "cloud.google.com/gke-spot",
        ),
        r"preemptible node \(cloud\.google\.com/gke-spot: true\)",
    ),
    "the store tolerates spot": (
        lambda o: store_pod(o)["tolerations"].append({"operator": "Exists"}),
        r"tolerates the taint of preemptible nodes \(all taints\)",
    ),
    "two stores": (lambda o: store(o).update(replicas=2), r"replicas: is 2"),
    "two stores for a while": (
        lambda o: store(o).pop("strategy"),
        r"strategy\.type: lets a second",
    ),
    "the store may be drained": (
        lambda o: o.pop("PodDisruptionBudget/keepstep-store"),
        r"no PodDisruptionBudget protects the store",
    ),
    "another port in the endpoint": (
        lambda o: variable(o, "JOB_STORE").update(value="keepstep-store:29500"),
        r"asks for port 29500, and Service/keepstep-store has 29400",
    ),
    "another port of the store": (
        lambda o: store_pod(o)["containers"][0]["env"][0].update(value="29500"),
        r"none is 29500, where keepstep store listens",
    ),
    "no such store": (
        lambda o: variable(o, "JOB_STORE").update(value="elsewhere:29400"),
        r"no Service is called elsewhere",
    ),
    "a service that selects nothing": (
        lambda o: spec(o, "Service/keepstep-store")["selector"].update(x="y"),
        r"Service/keepstep-store: spec\.selector: selects no pod that runs keepstep store",
    ),
    "selector mismatch": (
        lambda o: spec(o, "Service/keepstep-trainer")["selector"].update(x="y"),
        r"Service/keepstep-trainer: spec\.selector: does not select the pods of",
    ),
    "a deployment that selects others": (
        lambda o: store(o)["selector"]["matchLabels"].update(x="y"),
        r"selector\.matchLabels: does not select the pods of its own template",
    ),
    "a policy for nobody": (
        lambda o: spec(o, "NetworkPolicy/keepstep-trainer")["podSelector"]["matchLabels"].update(
            x="y"
        ),
        r"NetworkPolicy/keepstep-trainer: spec\.podSelector: selects none",
    ),
    "no names for pods": (
        lambda o: pod(o).update(subdomain="trainers"),
        r"subdomain: no Service is called trainers",
    ),
    "a service with an address": (
        lambda o: spec(o, "Service/keepstep-trainer").pop("clusterIP"),
        r"spec\.clusterIP: is no headless Service",
    ),
    "names only once ready": (
        lambda o: spec(o, "Service/keepstep-trainer").pop("publishNotReadyAddresses"),
        r"publishNotReadyAddresses",
    ),
    "a drain below the minimum": (
        lambda o: spec(o, "PodDisruptionBudget/keepstep-trainer").update(minAvailable=1),
        r"minAvailable: is 1, and training needs 2 nodes; write 2",
    ),
    "a budget of which nothing is left": (
        lambda o: variable(o, "JOB_NODES").update(value="2:2"),
        r"PodDisruptionBudget/keepstep-trainer: spec: all 2 nodes are needed: .*; delete this",
    ),
    "a recipe that is not there": (
        lambda o: o.pop("ConfigMap/keepstep-recipe"),
        r"ConfigMap keepstep-recipe is not among",
    ),
    "an account that is not there": (
        lambda o: o.pop("ServiceAccount/keepstep-trainer"),
        r"serviceAccountName: keepstep-trainer is not there",
    ),
    "another run is verified": (
        lambda o: spec(o, "CronJob/keepstep-verify")["jobTemplate"]["spec"]["template"]["spec"][
            "containers"
        ][0]["env"][0].update(value="s3://other"),
        r"CronJob/keepstep-verify: .*looks after s3://other, and s3://keepstep/main is trained",
    ),
    "metrics at another port": (
        lambda o: trainer(o)["ports"][0].update(containerPort=9400),
        r"prometheus\.io/port: is 9401, and the container's port metrics is 9400",
    ),
    "metrics served elsewhere": (
        lambda o: variable(o, "METRICS_PORT").update(value="9400"),
        r"--metrics-port=9400, and the container's port metrics is 9401",
    ),
    "a closed store": (
        lambda o: spec(o, "NetworkPolicy/keepstep-store")["ingress"][0]["ports"][0].update(port=1),
        r"NetworkPolicy/keepstep-store: spec\.ingress: trainers do not get through to port 29400",
    ),
    "a store that only others reach": (
        lambda o: spec(o, "NetworkPolicy/keepstep-store")["ingress"][0]["from"][0]["podSelector"][
            "matchLabels"
        ].update(x="y"),
        r"trainers do not get through to port 29400",
    ),
    "no way out to the store": (
        lambda o: spec(o, "NetworkPolicy/keepstep-trainer")["egress"].pop(1),
        r"trainers do not get out to port 29400 of the store",
    ),
    "trainers that do not reach each other": (
        lambda o: spec(o, "NetworkPolicy/keepstep-trainer")["ingress"][0].update(
            ports=[{"port": 29500}]
        ),
        r"spec\.ingress: trainers do not reach each other at all ports",
    ),
    "no names": (
        lambda o: o.pop("NetworkPolicy/keepstep-storage"),
        r"spec\.egress: trainers do not get out to the cluster's DNS",
    ),
    "a value that was changed in one place": (
        lambda o: o["ConfigMap/keepstep-values"]["data"].update(shm="2Gi"),
        r"data\.shm: is 2Gi, and Job/keepstep-trainer has 1Gi; change it here only",
    ),
    "a deadline that was changed in one place": (
        lambda o: job(o).update(activeDeadlineSeconds=3600),
        r"data\.deadline_seconds: is 7776000, and Job/keepstep-trainer has 3600",
    ),
    "no time for a save": (
        lambda o: o["ConfigMap/keepstep-values"]["data"].update(save_seconds="115"),
        r"data\.stop_seconds: is 110, and save_seconds is 115",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(objects: Objects, name: str) -> None:
    spoil, said = BROKEN[name]
    spoil(objects)
    found = findings(objects)
    assert any(re.search(said, one) for one in found), found


def test_a_namespace_that_is_closed_but_for_what_is_admitted_is_well(objects: Objects) -> None:
    everything = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    objects["NetworkPolicy/default-deny"] = {
        "kind": "NetworkPolicy",
        "metadata": dict(objects["NetworkPolicy/keepstep-store"]["metadata"], name="default-deny"),
        "spec": everything,
    }
    assert findings(objects) == []


def test_a_finding_names_file_object_field_and_remedy(objects: Objects) -> None:
    pod(objects).update(restartPolicy="Always")
    (found,) = findings(objects)
    assert found == (
        "x: Job/keepstep-trainer: spec.template.spec.restartPolicy: is Always; "
        "write Never: the Job replaces pods"
    )


def test_the_command_reads_files_and_says_78(
    tmp_path: Path, objects: Objects, keepstep: Keepstep
) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(objects.values()))
    assert keepstep("doctor", "--k8s", str(path))[0] == ExitCode.OK
    pod(objects).update(restartPolicy="Always")
    path.write_text(yaml.safe_dump_all(objects.values()))
    code, out, _ = keepstep("doctor", "--k8s", str(tmp_path))
    assert code == ExitCode.CONFIG
    assert "all.yaml: Job/keepstep-trainer: spec.template.spec.restartPolicy" in out
    document = json.loads(keepstep("doctor", "--k8s", str(path), "--json")[1])
    assert document["exit_code"] == 78
    assert document["findings"][0]["field"] == "spec.template.spec.restartPolicy"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("kind: Pod", "no pod among 1 objects runs keepstep"),
        (None, "no such file"),
    ],
)
def test_what_cannot_be_looked_through_is_told(
    tmp_path: Path, keepstep: Keepstep, text: str | None, said: str
) -> None:
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    code, _, err = keepstep("doctor", "--k8s", str(path))
    assert code == ExitCode.CONFIG
    assert said in err


def test_a_store_or_manifests_not_both(tmp_path: Path, keepstep: Keepstep) -> None:
    assert keepstep("doctor", str(tmp_path), "--k8s", str(tmp_path))[0] == ExitCode.USAGE
    assert keepstep("doctor")[0] == ExitCode.USAGE
