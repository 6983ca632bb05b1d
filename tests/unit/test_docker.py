"""The Dockerfile and the compose file: what can be said of them without an engine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text()


def instruction(name: str) -> list[str]:
    """The arguments of each instruction of that name, on one line each."""
    joined = TEXT.replace("\\\n", " ")
    return re.findall(rf"^\s*{name}\s+(.*)$", joined, re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    if not Path(hadolint).is_file():
        pytest.skip("hadolint is not installed: pip install '.[lint]'")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_init_is_first_and_there_is_no_shell() -> None:
    assert [json.loads(text) for text in instruction("ENTRYPOINT")] == [["tini", "--", "keepstep"]]
    assert all(isinstance(json.loads(text), list) for text in instruction("CMD"))


def test_both_targets_run_as_the_user_of_the_manifests() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", TEXT, re.MULTILINE)
    assert ("runtime", "cpu") in stages
    assert ("runtime", "cuda") in stages
    assert instruction("USER") == ["10001:10001"]
    assert (ROOT / "k8s/base/trainer.yaml").read_text().count("runAsUser: 10001") == 1


def test_no_package_index_is_named() -> None:
    assert "ARG TORCH_INDEX=\n" in TEXT
    assert "https://" not in TEXT


@pytest.mark.parametrize(
    ("index", "version", "options"),
    [("", "torch==2.0", []), ("http://i", "torch==2.0+cpu", ["--extra-index-url", "http://i"])],
)
def test_an_index_of_its_own_has_builds_without_gpus(
    tmp_path: Path, index: str, version: str, options: list[str]
) -> None:
    (command,) = [text for text in instruction("RUN") if text.startswith("sed ")]
    (tmp_path / "constraints.txt").write_text("torch==2.0\n")
    pip = "pip() { printf '%s\\n' \"$@\"; }; "
    done = subprocess.run(
        ["sh", "-euc", pip + command],
        cwd=tmp_path,
        env={**os.environ, "TORCH_INDEX": index},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "pinned.txt").read_text() == f"{version}\n"
    assert done.stdout.split() == ["install", "--constraint", "pinned.txt", *options, "torch"]


def test_all_that_is_copied_gets_past_the_ignore_file() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {word for text in instruction("COPY") if "--from" not in text for word in text.split()}
    sources = {word for word in copied if not word.startswith("./") and (ROOT / word).exists()}
    assert sources == admitted


def test_the_compose_file_starts_server_store_two_nodes_and_drill() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[test]'")
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"s3", "bucket", "store", "node-1", "node-2", "drill"}
    assert all(service["read_only"] for service in services.values())
    assert all(service["build"]["target"] == "cpu" for service in services.values())
    assert set(services["drill"]["depends_on"]) == {"node-1", "node-2"}
    mounts = [text for service in services.values() for text in service.get("volumes", [])]
    files = {text.split(":")[0] for text in mounts if text.startswith(".")}
    assert len(files) == 2
    assert all((DOCKERFILE.parent / path).is_file() for path in files)
    server = services["s3"]["build"]["args"]["EXTRA_PACKAGES"]
    assert server in (ROOT / "constraints.txt").read_text().splitlines()
