"""Who dies where."""

from keepstep.failpoints import FAILPOINTS

_COORDINATOR_SITES = ("arrive.after", "publish.before", "publish.middle", "publish.after")

CRASH_SITES = FAILPOINTS
"""All of them."""


def victim(site: str, world_size: int = 2) -> int:
    """The coordinator where only it passes, else the last rank."""
    return 0 if site in _COORDINATOR_SITES else world_size - 1
