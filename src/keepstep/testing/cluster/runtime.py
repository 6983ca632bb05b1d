"""Start containers as processes of this machine, and reach into them.

As root each container has namespaces and a root file system of its own (``inside.py``). Elsewhere
it is an ordinary process: the volumes' directories stand in for their mount paths, and addresses
for names, in its arguments and environment.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from keepstep.testing.cluster.volumes import Mount
from keepstep.testing.networks import Namespaces, Network
from keepstep.testing.nodes import kill_tree, write_plugin

_HERE = Path(__file__).parent
_KEEPSTEP = "import sys; from keepstep.cli.main import main; sys.exit(main(sys.argv[1:]))"
IMAGE = "/opt/keepstep-cluster"
"""Where containers find what stands in for their image."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Order:
    """All that there is to say about one start of a container."""

    argv: Sequence[str]
    environ: Mapping[str, str]
    mounts: Sequence[Mount]
    hostname: str
    machine: int
    """Of the network."""
    log: Path
    directory: Path
    """For what the start itself needs."""
    cwd: str = "/"
    is_read_only: bool = False
    user: int | None = None
    group: int | None = None


class Runtime:
    """What stands in for an engine and its images.

    Args:
        programs: Commands by name. The containers' images are not run; what a manifest calls by one
            of these names, in whatever directory, is this instead.
        environ: What the images would set.
        entrypoint: What the images would run, for containers without a command.
    """

    def __init__(
        self,
        network: Network,
        directory: Path,
        *,
        programs: Mapping[str, Sequence[str]] | None = None,
        environ: Mapping[str, str] | None = None,
        entrypoint: Sequence[str] = (),
    ) -> None:
        self.network = network
        self.is_contained = isinstance(network, Namespaces)
        self.entrypoint = tuple(entrypoint)
        source = _HERE.parents[2]
        self._environ = {
            "PATH": f"{IMAGE}/bin:{PATH}",
            "PYTHONPATH": f"{IMAGE}/python:{source}",
            "HOME": "/tmp",  # noqa: S108  # inside the container
            "LANG": "C.UTF-8",
        }
        self._environ |= environ or {}
        self._programs = {**_DEFAULT_PROGRAMS, **(programs or {})}
        self._keep = [sys.prefix, sys.base_prefix, str(source)]
        image = directory / "image"
        _write_programs(image / "bin", self._programs)
        write_plugin(image / "python")
        self.image = Mount(IMAGE, str(image), is_read_only=True)
        self.names: dict[str, str] = {}
        """Addresses by name, where there is nothing that resolves them."""

    def start(self, order: Order) -> "Started":
        """*Raises:* ``OSError``. What goes wrong within ends the container with 128."""
        order.directory.mkdir(parents=True, exist_ok=True)
        pid_file = order.directory / "pid"
        pid_file.unlink(missing_ok=True)
        specification = order.directory / "start.json"
        specification.write_text(json.dumps(self._specification(order, pid_file)))
        with order.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  # a container is a process
                [sys.executable, "-I", "-S", str(_HERE / "inside.py"), str(specification)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Started(process, pid_file, order, self)

    def environ_of(self, order: Order) -> dict[str, str]:
        """All variables of the container."""
        environ = self._environ | {"HOSTNAME": order.hostname} | dict(order.environ)
        return {name: self.rewritten(value, order) for name, value in environ.items()}

    def argv_of(self, argv: Sequence[str], order: Order) -> list[str]:
        """With stand-ins for the programs that are known by name."""
        first, *rest = argv
        known = self._programs.get(Path(first).name)
        return [*(known or [first]), *(self.rewritten(word, order) for word in rest)]

    def rewritten(self, text: str, order: Order) -> str:
        """As it has to read where there are no mounts and no names."""
        if self.is_contained:
            return text
        for name in sorted(self.names, key=len, reverse=True):
            as_host = rf"(?<![\w.-]){re.escape(name)}(?=:\d)"
            text = re.sub(as_host, self.names[name], text)
        for mount in order.mounts:
            if text == mount.target or text.startswith(mount.target + "/"):
                source = mount.source or str(_memory_directory(order, mount))
                return source + text.removeprefix(mount.target)
        return text

    def _specification(self, order: Order, pid_file: Path) -> dict[str, object]:
        root = ""
        network = ""
        if isinstance(self.network, Namespaces):
            root = tempfile.mkdtemp(prefix="root-", dir=order.directory)
            network = str(self.network.path(order.machine))
        return {
            "root": root,
            "network": network,
            "hostname": order.hostname,
            "mounts": [mount.as_dict() for mount in order.mounts],
            "keep": self._keep,
            "is_read_only": order.is_read_only,
            "user": order.user if self.is_contained else None,
            "group": order.group,
            "cwd": order.cwd if self.is_contained else str(order.directory),
            "argv": self.argv_of(order.argv, order),
            "environ": self.environ_of(order),
            "pid_file": str(pid_file),
        }


class Started:
    """A container that was started: the process outside, and process 1 inside."""

    def __init__(
        self, process: subprocess.Popen[bytes], pid_file: Path, order: Order, runtime: Runtime
    ) -> None:
        self._process = process
        self._pid_file = pid_file
        self._order = order
        self._runtime = runtime

    @property
    def pid(self) -> int | None:
        """Of process 1, as this machine numbers it; none before it is there."""
        text = self._pid_file.read_text() if self._pid_file.exists() else ""
        return int(text) if text else None

    def poll(self) -> int | None:
        """The exit code, 128 + the number of a signal; none while it runs."""
        return self._process.poll()

    def wait(self) -> None:
        """*Blocks:* until it has ended."""
        self._process.wait()

    def signal(self, number: int) -> None:
        """To process 1."""
        pid = self.pid
        if pid is None or self.poll() is not None:
            return
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self._runtime.is_contained and self.pid is not None:
            self.signal(signal.SIGKILL)  # the kernel ends the rest of the namespace
        elif self.poll() is None:
            pid = self.pid
            kill_tree(self._process.pid if pid is None else pid)

    def execute(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """A command inside, as of ``kubectl exec``; its output can be read."""
        words = self._runtime.argv_of(argv, self._order)
        if self._runtime.is_contained:
            words = [*self._enter(), *words]
        return subprocess.Popen(  # noqa: S603  # as above
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._runtime.environ_of(self._order),
            start_new_session=True,
        )

    def _enter(self) -> list[str]:
        nsenter = shutil.which("nsenter") or "nsenter"
        words = [nsenter, "--target", str(self.pid), "--all", "--root", "--wd"]
        if self._order.user is not None:
            words += ["--setuid", str(self._order.user)]
            words += ["--setgid", str(self._order.group or self._order.user)]
        return [*words, "--"]


_PYTHON_SCRIPT = (sys.executable, "-I", "-S")
_DEFAULT_PROGRAMS: Mapping[str, Sequence[str]] = {
    "tini": (*_PYTHON_SCRIPT, str(_HERE / "init.py")),
    "keepstep": (sys.executable, "-c", _KEEPSTEP),
    "python": (sys.executable,),
    "python3": (sys.executable,),
}


def _write_programs(directory: Path, programs: Mapping[str, Sequence[str]]) -> None:
    """As commands on the path, for those that are called by others."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, words in programs.items():
        path = directory / name
        quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
        path.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
        path.chmod(0o755)


def _memory_directory(order: Order, mount: Mount) -> Path:
    directory = order.directory / "memory" / mount.target.strip("/").replace("/", "-")
    directory.mkdir(parents=True, exist_ok=True)
    return directory
