"""What a result was measured on, without names or paths."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "safetensors",
    "torchsnapshot",
    "nvidia-resiliency-ext",
    "dlrover",
    "awscrt",
    "numpy",
)
_REPOSITORY = Path(__file__).resolve().parent.parent


def facts(directory: Path) -> dict[str, Any]:
    """Of the machine, and of the file system that holds the directory."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "filesystem": file_system(directory),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def file_system(directory: Path) -> str:
    """The type of the file system, by the longest mount point above the directory."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if directory.is_relative_to(point)]
    return max(above)[1] if above else "unknown"


def load_average() -> float:
    """Of the last minute: processes that ran or waited for the disk."""
    return round(os.getloadavg()[0], 2)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of keepstep, with a ``+`` if files differ from it; ``None`` outside a repository."""
    command = ["git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
