"""Between a job and its object store: a proxy that makes requests go wrong, where there is one."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from keepstep.drills.soak.schedule import Fault
from keepstep.testing.fault_proxy import ENDPOINT_VARIABLES, FaultProxy
from keepstep.testing.faults import INTERNAL_ERROR, SLOW_DOWN, LoseReply, ResetReply
from keepstep.testing.faults import Fault as StoreFault

_FAULTS: Mapping[str, tuple[StoreFault, int]] = {
    "slow-down": (SLOW_DOWN, 5),
    "server-error": (INTERNAL_ERROR, 3),
    "reset": (ResetReply(0), 2),
    "lost-reply": (LoseReply(), 2),
}
"""What it is, and how many requests meet it."""


@dataclass(frozen=True, slots=True)
class Network:
    """Of one soak."""

    proxy: FaultProxy | None

    @property
    def is_open(self) -> bool:
        """Whether faults can be put in."""
        return self.proxy is not None

    @property
    def environ(self) -> dict[str, str]:
        """What leads a job through the proxy."""
        return dict.fromkeys(ENDPOINT_VARIABLES, self.proxy.endpoint) if self.proxy else {}

    def inject(self, fault: Fault) -> None:
        """Let the next requests that write meet it."""
        if self.proxy is not None:
            deed, times = _FAULTS[fault.kind]
            self.proxy.inject(deed, method="PUT", times=times)

    def calm(self) -> None:
        """No more faults."""
        if self.proxy is not None:
            self.proxy.clear()


@contextmanager
def open_network(uri: str) -> Iterator[Network]:
    """A proxy, if the run is on an S3 server that is reached without TLS."""
    upstream = next((os.environ[name] for name in ENDPOINT_VARIABLES if name in os.environ), "")
    if not uri.startswith("s3://") or not upstream.startswith("http://"):
        yield Network(None)
        return
    with FaultProxy(upstream) as proxy:
        yield Network(proxy)
