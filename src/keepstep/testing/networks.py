"""Machines for tests: network namespaces on a bridge where root allows it, else loopback."""

import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Protocol


class Network(Protocol):
    """A few machines that can reach each other."""

    @property
    def interface(self) -> str: ...

    def address(self, machine: int) -> str: ...

    def command(self, machine: int, words: list[str]) -> list[str]:
        """What to execute here so that ``words`` are executed there."""
        ...

    def cut(self, machine: int) -> None:
        """From now on packets from and to this machine get lost, without a word to anybody."""
        ...

    def heal(self, machine: int) -> None: ...

    def close(self) -> None: ...


class Loopback:
    """All machines are this one. Nothing can be cut."""

    interface = "lo"

    def address(self, machine: int) -> str:
        return f"127.0.0.{10 + machine}"

    def command(self, machine: int, words: list[str]) -> list[str]:  # noqa: ARG002
        return words

    def cut(self, machine: int) -> None:
        raise NotImplementedError("loopback cannot be cut: use Namespaces, which need root")

    heal = cut

    def close(self) -> None:
        pass


class Namespaces:
    """Each machine is a network namespace, plugged into a bridge in another one.

    Needs root and iproute2. No interface or address of the machine itself is touched.
    """

    interface = "eth0"

    def __init__(self, machines: int) -> None:
        self._tag = f"ks{uuid.uuid4().hex[:6]}"
        self._switch = f"{self._tag}sw"
        self._machines: set[int] = set()
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "br0", "up")
            for machine in range(machines):
                self.add(machine)
        except BaseException:
            self.close()
            raise

    def address(self, machine: int) -> str:
        return f"10.77.{machine // 200}.{10 + machine % 200}"

    def path(self, machine: int) -> Path:
        """The namespace as a file."""
        return Path("/run/netns", self._name(machine))

    def command(self, machine: int, words: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self._name(machine), *words]

    def add(self, machine: int) -> None:
        """Plug in one more machine."""
        name, port = self._name(machine), f"p{machine}"
        self._machines.add(machine)
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        peer = ["peer", "name", "eth0", "netns", name]
        _ip("-n", self._switch, "link", "add", port, "type", "veth", *peer)
        _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", name, "address", "add", f"{self.address(machine)}/16", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")

    def remove(self, machine: int) -> None:
        """Unplug it for good. Sockets that are still open there live on, unheard."""
        self._machines.discard(machine)
        if self.path(machine).exists():
            _ip("netns", "delete", self._name(machine))

    def move_address(self, address: str, old: int | None, new: int) -> None:
        """One more address of the machine ``new``, which ``old`` had so far."""
        if old is not None and self.path(old).exists():
            _ip("-n", self._name(old), "address", "del", f"{address}/32", "dev", "eth0")
        _ip("-n", self._name(new), "address", "add", f"{address}/32", "dev", "eth0")
        for machine in self._machines:  # they would go on sending to the old machine for a while
            _ip("-n", self._name(machine), "neigh", "flush", "to", address)

    def cut(self, machine: int) -> None:
        _ip("-n", self._switch, "link", "set", f"p{machine}", "nomaster")

    def heal(self, machine: int) -> None:
        _ip("-n", self._switch, "link", "set", f"p{machine}", "master", "br0")

    def close(self) -> None:
        for machine in list(self._machines):
            self.remove(machine)
        if Path("/run/netns", self._switch).exists():
            _ip("netns", "delete", self._switch)

    def _name(self, machine: int) -> str:
        return f"{self._tag}n{machine}"


def can_use_namespaces() -> bool:
    """Whether this user may make network namespaces here; tried, not guessed."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        Namespaces(1).close()
    except (OSError, RuntimeError):
        return False
    return True


def open_network(machines: int) -> Network:
    return Namespaces(machines) if can_use_namespaces() else Loopback()


def _ip(*words: str) -> None:
    done = subprocess.run(  # noqa: S603  # words of this module
        ["ip", *words],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
