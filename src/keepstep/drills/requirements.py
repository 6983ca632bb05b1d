"""What a machine must have for a drill, and why it has not."""

import os
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from keepstep.errors import ConfigError


def lacking(needs: Iterable[str]) -> str | None:
    """The first thing that this machine lacks, as a sentence; ``None`` if it has them all.

    ``module:NAME`` and ``command:NAME`` name what has to be installed; other needs are those of
    :data:`REQUIREMENTS`.
    """
    return next((reason for need in needs if (reason := _lack(need)) is not None), None)


def _lack(need: str) -> str | None:
    kind, colon, name = need.partition(":")
    if colon and kind == "module":
        return None if find_spec(name) else f"{name} is not installed"
    if colon and kind == "command":
        return None if shutil.which(name) else f"there is no command {name}"
    return REQUIREMENTS[need]()


def _root() -> str | None:
    return None if os.geteuid() == 0 else "it takes root"


def _network_namespaces() -> str | None:
    from keepstep.testing.networks import can_use_namespaces

    if can_use_namespaces():
        return None
    return "it takes network namespaces (root, and the command ip)"


def _freezer() -> str | None:
    from keepstep.testing.freezer import can_freeze

    return None if can_freeze() else "it takes the freezer of control groups (root)"


def _loop_devices() -> str | None:
    if _root() is None and Path("/dev/loop-control").exists():
        return None
    return "it takes loop devices (root, and /dev/loop-control)"


def _s3_server() -> str | None:
    from keepstep.testing.weed import find_binary

    try:
        find_binary()
    except ConfigError as error:
        return str(error)
    return None


REQUIREMENTS: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "network-namespaces": _network_namespaces,
    "freezer": _freezer,
    "loop-devices": _loop_devices,
    "s3-server": _s3_server,
}
"""By name: says what is lacking, or ``None``."""
