"""Services with an address of their own, and the names of all."""

from collections.abc import Sequence
from pathlib import Path

from keepstep.testing.cluster.hosts import (
    Endpoint,
    hosts_text,
    is_headless,
    selected,
    write_hosts,
)
from keepstep.testing.cluster.manifests import Manifests
from keepstep.testing.cluster.pod import Pod
from keepstep.testing.networks import Namespaces, Network


class Services:
    """A service's address belongs to its first ready pod, and to ``gateway`` while there is none:
    whoever connects then is refused.
    """

    def __init__(
        self, manifests: Manifests, network: Network, gateway: int, directory: Path
    ) -> None:
        self._manifests = manifests
        self._network = network
        self._gateway = gateway
        self._directory = directory
        self._holders: dict[str, int] = {}
        self._hosts = ""
        self.outside: dict[str, str] = {}
        """Addresses by name, of what is not in the cluster."""
        self.addresses: dict[str, str] = {}
        pattern = "10.77.255.{}" if isinstance(network, Namespaces) else "127.0.1.{}"
        with_address = (each for each in manifests.of("Service") if not is_headless(each))
        for number, service in enumerate(with_address, start=1):
            name = service["metadata"]["name"]
            self.addresses[name] = pattern.format(number)
            if isinstance(network, Namespaces):
                network.move_address(self.addresses[name], None, gateway)
            self._holders[name] = gateway

    def hosts_path(self, pod_name: str) -> Path:
        return self._directory / "hosts" / pod_name

    @property
    def names(self) -> dict[str, str]:
        """Addresses by every name there is."""
        pairs = (line.split() for line in self._hosts.splitlines())
        return {name: words[0] for words in pairs for name in words[1:] if "localhost" not in name}

    def publish(self, pods: Sequence[Pod]) -> bool:
        """Make addresses and names those of these pods; whether any name has changed."""
        endpoints = [_endpoint(pod) for pod in pods]
        if isinstance(self._network, Namespaces):
            self._move(self._network, pods, endpoints)
        text = hosts_text(
            self._manifests.of("Service"), endpoints, self.addresses, self._manifests.namespace
        )
        text += "".join(f"{address} {name}\n" for name, address in self.outside.items())
        is_new = text != self._hosts
        self._hosts = text
        if is_new:
            for pod in pods:
                self.write(pod)
        return is_new

    def write(self, pod: Pod) -> None:
        """The hosts file of one pod: everybody, and itself."""
        path = self.hosts_path(pod.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        identity = pod.identity
        write_hosts(path, f"{self._hosts}{identity.address} {identity.hostname}\n")

    def _move(self, network: Namespaces, pods: Sequence[Pod], endpoints: list[Endpoint]) -> None:
        machines = {pod.identity.address: pod.identity.machine for pod in pods}
        for service in self._manifests.of("Service"):
            name = service["metadata"]["name"]
            if name not in self.addresses:
                continue
            behind = [machines[each.address] for each in selected(service, endpoints)]
            holder = self._holders[name]
            new = behind[0] if behind else self._gateway
            if holder == new or holder in behind:
                continue
            network.move_address(self.addresses[name], holder, new)
            self._holders[name] = new


def _endpoint(pod: Pod) -> Endpoint:
    identity = pod.identity
    return Endpoint(
        identity.address,
        identity.hostname,
        identity.spec.get("subdomain", ""),
        identity.labels,
        pod.is_ready and not pod.is_terminating,
    )
