"""The base and all overlays, rendered: valid by the schemas, and in agreement with themselves."""

import copy
import io
import json
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from keepstep.config import resolve
from keepstep.errors import ConfigError
from keepstep.k8s.checkup import check_manifests
from keepstep.k8s.manifest import Manifest, at
from keepstep.k8s.reading import read_manifests
from keepstep.k8s.workload import Cluster, Workload
from keepstep.testing.cluster.job_controller import JobController

K8S = Path(__file__).parents[2] / "k8s"
DIRECTORIES = [K8S / "base", *sorted(path for path in (K8S / "overlays").iterdir())]
EXTENSIONS = {"JobSet", "TrainJob", "TrainingRuntime"}
"""Whose schemas do not come with kubernetes-validate; rules of ours stand in."""
OLDEST = "1.31"
TRAINERS_BUDGET = "PodDisruptionBudget/keepstep-trainer"

pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[k8s]'")
kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed: pip install '.[test]'"
)
KUBECTL = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
if not Path(KUBECTL).is_file():
    pytest.skip("kubectl is not installed: pip install '.[test]'", allow_module_level=True)


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Manifest]]:
    with ThreadPoolExecutor(4) as pool:
        manifests = pool.map(read_manifests, map(str, DIRECTORIES))
        return {path.name: found for path, found in zip(DIRECTORIES, manifests, strict=True)}


def trainer_of(manifests: list[Manifest]) -> Workload:
    (trainer,) = Cluster(manifests).running("run")
    return trainer


@pytest.mark.parametrize("version", [OLDEST, str(kubernetes_validate.latest_version())])
def test_what_is_rendered_is_valid(rendered: dict[str, list[Manifest]], version: str) -> None:
    known = {
        json.dumps(one.body): (name, one)  # most objects are the same in all overlays
        for name, manifests in rendered.items()
        for one in manifests
        if one.kind not in EXTENSIONS
    }
    assert len(known) > 40
    for name, manifest in known.values():
        try:
            kubernetes_validate.validate(manifest.body, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{name}: {manifest.title}: {error}")


@pytest.mark.parametrize("name", [directory.name for directory in DIRECTORIES])
def test_what_is_rendered_agrees(rendered: dict[str, list[Manifest]], name: str) -> None:
    assert [str(finding) for finding in check_manifests(rendered[name])] == []
    verbs = sorted(workload.verb for workload in Cluster(rendered[name]).workloads)
    assert verbs == ["prune", "run", "store", "verify"]


@pytest.mark.parametrize("name", [directory.name for directory in DIRECTORIES])
def test_people_get_a_pod_with_the_rights_and_volumes_of_the_verification(
    rendered: dict[str, list[Manifest]], name: str
) -> None:
    jobs = {one.name: one.get("spec") for one in rendered[name] if one.kind == "CronJob"}
    shell, verify = (
        copy.deepcopy(at(jobs[one], "jobTemplate.spec.template"))
        for one in ("keepstep-shell", "keepstep-verify")
    )
    assert jobs["keepstep-shell"]["suspend"] is True
    for template in (shell, verify):
        for field in ("name", "command", "args"):
            del template["spec"]["containers"][0][field]
    assert shell == verify


def test_a_misspelt_field_is_not_valid(rendered: dict[str, list[Manifest]]) -> None:
    job = trainer_of(rendered["base"]).manifest
    spoilt = {**job.body, "spec": {**job.body["spec"], "parallelisms": 4}}
    with pytest.raises(kubernetes_validate.ValidationError, match="parallelisms"):
        kubernetes_validate.validate(spoilt, OLDEST, strict=True)


def test_a_value_that_an_overlay_changes_comes_to_all_places(tmp_path: Path) -> None:
    kustomization = tmp_path / "overlay" / "kustomization.yaml"
    kustomization.parent.mkdir()
    shutil.copytree(K8S, tmp_path / "k8s")
    shutil.copy(K8S / "gpu" / "recipe.toml", tmp_path / "k8s" / "base")  # slots for 64 ranks
    values = """{uri: "s3://b/r", min_nodes: "3", max_nodes: "8", spare_nodes: "3", processes: "8",
        stop_seconds: "41", grace_seconds: "51", shm: 2Gi, store_port: "2001",
        metrics_port: "2002", deadline_seconds: "86400", monitoring_namespace: watch,
        keep: last=7}"""
    kustomization.write_text(
        "resources: [../k8s/base]\n"
        "patches:\n"
        "  - patch: |\n"
        "      apiVersion: v1\n"
        "      kind: ConfigMap\n"
        "      metadata: {name: keepstep-values, namespace: keepstep}\n"
        f"      data: {values}\n"
        "transformers: [../k8s/agree]\n"
    )
    manifests = read_manifests(str(kustomization.parent))
    assert [str(finding) for finding in check_manifests(manifests)] == []
    trainer = trainer_of(manifests)
    assert trainer.nodes == (3, 8)
    assert trainer.option("--rdzv-endpoint") == "keepstep-store:2001"
    assert trainer.option("--nproc-per-node") == "8"
    assert trainer.option("--shutdown-timeout") == "41"
    assert trainer.option("--metrics-port") == "2002"
    assert trainer.pod["terminationGracePeriodSeconds"] == 51
    assert trainer.spec["maxFailedIndexes"] == 3
    assert trainer.spec["activeDeadlineSeconds"] == 86400
    assert at(trainer.mount_at("/dev/shm"), "emptyDir.sizeLimit") == "2Gi"
    policy = next(one for one in manifests if one.title == "NetworkPolicy/keepstep-trainer")
    admitted = at(policy.get("spec.ingress.1.from.0"), "namespaceSelector.matchLabels")
    assert admitted == {"kubernetes.io/metadata.name": "watch"}
    (prune,) = Cluster(manifests).running("prune")
    assert prune.words[-4:] == ["prune", "s3://b/r", "--keep=last=7", "--may-be-empty"]


def test_the_component_for_gpus_fits_an_overlay(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s" / "overlays" / "eks-spot" / "kustomization.yaml"
    images = (
        "images: [{name: keepstep, newName: r/k, newTag: cpu-2},"
        " {name: keepstep-cuda, newName: r/k, newTag: cuda-2}]"
    )
    path.write_text(f"{path.read_text()}components: [../../gpu]\n{images}\n")
    manifests = read_manifests(str(path.parent))
    assert [str(finding) for finding in check_manifests(manifests)] == []
    trainer = trainer_of(manifests)
    kubernetes_validate.validate(trainer.manifest.body, OLDEST, strict=True)
    assert trainer.option("--nproc-per-node") == "8"
    cluster = Cluster(manifests)
    found = {one.verb: one.container["image"] for one in cluster.workloads}
    others = dict.fromkeys(["store", "verify", "prune"], "r/k:cpu-2")
    assert found == {"run": "r/k:cuda-2", **others}
    (recipe,) = (one for one in manifests if one.title.startswith("ConfigMap/keepstep-recipe"))
    batch = tomllib.loads(recipe.body["data"]["recipe.toml"])["batch"]
    assert batch["global_size"] // batch["microbatch"] >= 4 * 8, "a slot for each rank at the most"


def test_the_recipe_for_gpus_is_one() -> None:
    resolved = resolve(files=[K8S / "gpu" / "recipe.toml"], environ={}, arguments=[])
    assert resolved.config.parallel.strategy == "fsdp"


def test_the_image_of_cpu_nodes_does_not_come_to_nodes_with_gpus(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s" / "overlays" / "eks-spot" / "kustomization.yaml"
    images = "images: [{name: keepstep, newName: r/k, newTag: cpu-2}]"
    path.write_text(f"{path.read_text()}components: [../../gpu]\n{images}\n")
    trainer = trainer_of(read_manifests(str(path.parent)))
    assert trainer.container["image"] == "keepstep-cuda"


def test_an_overlay_that_forgets_to_copy_its_values_is_found(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s" / "overlays" / "gke-spot" / "kustomization.yaml"
    path.write_text(path.read_text().replace("transformers: [../../agree]\n", ""))
    found = [str(one) for one in check_manifests(read_manifests(str(path.parent)))]
    assert any("data.uri: is gs://example-bucket/main" in one for one in found), found
    assert any("name k8s/agree below transformers" in one for one in found)


def test_what_kustomize_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]\n")
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        read_manifests(str(tmp_path))


def test_rendered_manifests_may_be_piped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    text = subprocess.run(
        [KUBECTL, "kustomize", K8S / "base"], check=True, capture_output=True, text=True
    ).stdout
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert len(read_manifests("-")) == len(read_manifests(str(K8S / "base")))


def spoil(manifests: list[Manifest], kind: str, path: str, value: object) -> list[str]:
    """What is found once ``value`` stands there."""
    spoilt = [Manifest(one.file, copy.deepcopy(one.body)) for one in manifests]
    manifest = next(one for one in spoilt if one.kind == kind)
    place, _, field = path.rpartition(".")
    parent: Any = manifest.get(place)
    parent[field] = value
    return [str(one) for one in check_manifests(spoilt)]


@pytest.mark.parametrize(
    ("name", "kind", "path", "value", "said"),
    [
        ("jobset", "JobSet", "spec.replicated", [], "spec.replicated: there is no such field"),
        (
            "jobset",
            "JobSet",
            "spec.failurePolicy.restartStrategy",
            "Replace",
            "Replace is not known",
        ),
        (
            "jobset",
            "JobSet",
            "spec.failurePolicy.rules.0.action",
            "FailJob",
            "rules.0.action: FailJob is not known; write FailJobSet",
        ),
        (
            "jobset",
            "JobSet",
            "spec.successPolicy.targetReplicatedJobs",
            ["trainer"],
            "trainer is not known; write node",
        ),
        (
            "jobset",
            "JobSet",
            "spec.replicatedJobs.0.template.spec.template.spec.restartPolicy",
            "Always",
            "is Always; write Never",
        ),
        ("trainjob", "TrainJob", "spec.trainer.numNodes", 3, "a TrainJob has a fixed size"),
        ("trainjob", "TrainJob", "spec.runtimeRef.name", "torch", "TrainingRuntime torch is not"),
        ("trainjob", "TrainJob", "spec.trainers", {}, "spec.trainers: there is no such field"),
        (
            "trainjob",
            "TrainingRuntime",
            "spec.template.spec.replicatedJobs.0.template.metadata.labels",
            {},
            "the Trainer does not find the job that trains",
        ),
        (
            "trainjob",
            "TrainingRuntime",
            "spec.template.spec.replicatedJobs.0.template.spec.podFailurePolicy.rules",
            [],
            "FailJob: lacks 64 (USAGE)",
        ),
    ],
)
def test_what_is_broken_in_an_extension_is_found(
    rendered: dict[str, list[Manifest]], name: str, kind: str, path: str, value: object, said: str
) -> None:
    found = spoil(rendered[name], kind, path, value)
    assert any(said in one for one in found), found


@pytest.mark.parametrize("name", [directory.name for directory in DIRECTORIES])
def test_a_job_with_the_fewest_nodes_is_taken_by_the_cluster(
    rendered: dict[str, list[Manifest]], name: str
) -> None:
    trainer = trainer_of(rendered[name])
    assert trainer.nodes is not None
    least, _ = trainer.nodes
    assert JobController({**trainer.spec, "completions": least, "parallelism": least})


def test_a_train_job_says_that_its_size_is_fixed(rendered: dict[str, list[Manifest]]) -> None:
    trainer = trainer_of(rendered["trainjob"])
    assert trainer.nodes == (4, 4)
    assert "FIXED" in (K8S / "overlays" / "trainjob" / "kustomization.yaml").read_text()


def test_the_budget_of_a_fixed_size_does_not_block_drains(
    rendered: dict[str, list[Manifest]],
) -> None:
    assert budgets_of(rendered["trainjob"]) == ["keepstep-store"]
    assert budgets_of(rendered["base"]) == ["keepstep-store", "keepstep-trainer"]


@pytest.mark.parametrize("name", ["eks-spot", "aks-spot"])
def test_no_budget_refuses_the_drain_of_a_spot_node(
    rendered: dict[str, list[Manifest]], name: str
) -> None:
    assert budgets_of(rendered[name]) == ["keepstep-store"]
    budget = next(one for one in rendered["base"] if one.title == TRAINERS_BUDGET)
    found = [str(one) for one in check_manifests([*rendered[name], budget])]
    assert any("the drain that a notice comes as" in one for one in found), found


def test_karpenter_drains_nodes_with_trainers(rendered: dict[str, list[Manifest]]) -> None:
    annotations = at(trainer_of(rendered["eks-spot"]).spec, "template.metadata.annotations")
    assert "karpenter.sh/do-not-disrupt" not in annotations


def test_applying_again_does_not_suspend_a_running_job(rendered: dict[str, list[Manifest]]) -> None:
    assert "suspend" not in trainer_of(rendered["kueue"]).spec


def budgets_of(manifests: list[Manifest]) -> list[str]:
    return sorted(one.name for one in Cluster(manifests).of_kind("PodDisruptionBudget"))
