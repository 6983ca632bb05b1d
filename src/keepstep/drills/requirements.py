"""What a machine must have for a drill, and why it has not."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec

from keepstep.errors import ConfigError


def lacking(needs: Iterable[str]) -> str | None:
    """The first thing that this machine lacks, as a sentence; ``None`` if it has them all.

    ``module:NAME`` names what has to be installed; other needs are those of :data:`REQUIREMENTS`.
    """
    return next((reason for need in needs if (reason := _lack(need)) is not None), None)


def _lack(need: str) -> str | None:
    kind, colon, name = need.partition(":")
    if colon and kind == "module":
        return None if find_spec(name) else f"{name} is not installed"
    return REQUIREMENTS[need]()


def _network_namespaces() -> str | None:
    from keepstep.testing.networks import can_use_namespaces

    if can_use_namespaces():
        return None
    return "it takes network namespaces (root, and the command ip)"


def _freezer() -> str | None:
    from keepstep.testing.freezer import can_freeze

    return None if can_freeze() else "it takes the freezer of control groups (root)"


def _disk() -> str | None:
    from keepstep.testing.block_device import FILE_SYSTEMS, cannot_cut

    return cannot_cut(FILE_SYSTEMS["ext4"])


def _s3_server() -> str | None:
    from keepstep.testing import weed

    try:
        weed.find_binary()
    except ConfigError as error:
        return str(error)
    return None if find_spec("botocore") else "botocore is not installed"


REQUIREMENTS: dict[str, Callable[[], str | None]] = {
    "network-namespaces": _network_namespaces,
    "freezer": _freezer,
    "disk": _disk,
    "s3-server": _s3_server,
}
"""By name: says what is lacking, or ``None``."""
