"""Nodes of a real job on one machine: agents that can be started, told to go, killed and cut off.

::

    with Nodes(3, directory, min_nodes=2) as nodes:
        nodes.start_store()
        nodes.start_all()
        nodes.wait_for_world(3)
        nodes.kill_node(0)
        nodes.wait_for_world(2, after_round=1)

Each node is a network namespace where root allows it, else an address of loopback. Waits are on
what the workers have written down, never on time alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self

from keepstep.testing.networks import Network, open_network
from keepstep.testing.ports import claim_ports

_LONGEST_SECONDS = 120.0
_KEEPSTEP = "import sys; from keepstep.cli.main import main; sys.exit(main(sys.argv[1:]))"

_SKEWED_CLOCK = """
import datetime, os, time
_path = os.environ["SKEW_FILE"]
def _seconds():
    with open(_path) as file:
        return float(file.read())
_true_time, _datetime = time.time, datetime.datetime
class _Skewed(_datetime):
    @classmethod
    def now(cls, tz=None):
        return _datetime.now(tz) + datetime.timedelta(seconds=_seconds())
datetime.datetime = _Skewed
time.time = lambda: _true_time() + _seconds()
"""


class Nodes:
    """A job of up to ``count`` nodes, with one worker each by default, and a machine for the store.

    Args:
        worker: Arguments of torchrun that name the worker. Default: the light worker.
        conf: What ``--rdzv-conf`` says.
        is_keepstep_run: Whether agents are ``keepstep run``; they have no ``max_restarts``.
        environ: For agents and workers, above ``inherited``.
        inherited: What they have of this process's own environment. Default: all.
        network: The machines; they are closed with the nodes. Default: the best there is here.
    """

    def __init__(
        self,
        count: int,
        directory: Path,
        *,
        min_nodes: int = 1,
        max_nodes: int | None = None,
        max_restarts: int = 100,
        worker: tuple[str, ...] = ("-m", "keepstep.testing.light_worker"),
        conf: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        inherited: Mapping[str, str] | None = None,
        is_keepstep_run: bool = False,
        workers_per_node: int = 1,
        network: Network | None = None,
    ) -> None:
        self.count = count
        self.directory = directory
        self.agents: dict[int, subprocess.Popen[bytes]] = {}
        self.store: subprocess.Popen[bytes] | None = None
        self._bounds = f"{min_nodes}:{max_nodes or count}"
        self._max_restarts = max_restarts
        self._worker = worker
        self._conf = dict(conf or {})
        self._environ = dict(environ or {})
        self._inherited = os.environ if inherited is None else inherited
        self._is_keepstep_run = is_keepstep_run
        self._workers_per_node = workers_per_node
        self._started: list[subprocess.Popen[bytes]] = []
        self.records_path = directory / "records"
        self.records_path.mkdir(parents=True, exist_ok=True)
        self.python_path = _python_path(directory)
        self._ports = claim_ports()  # loopback is shared with other tests
        self.network = network or open_network(count + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for process in self._started:
                kill_tree(process.pid)
                process.wait()
        finally:
            self.network.close()
            self._ports.release()

    @property
    def store_machine(self) -> int:
        return self.count

    @property
    def endpoint(self) -> str:
        return f"{self.network.address(self.store_machine)}:{self._ports.first}"

    def start_store(self) -> None:
        """``keepstep store`` on a machine of its own."""
        host = self.network.address(self.store_machine)
        port = str(self._ports.first)
        words = [sys.executable, "-c", _KEEPSTEP, "store", "--host", host, "--port", port]
        self.store = self._start(self.store_machine, words, "store", {})
        self.wait_until(lambda: "rendezvous store on" in self.log("store"), "the store listens")

    def kill_store(self) -> None:
        assert self.store is not None
        kill_tree(self.store.pid)
        self.store.wait()

    def start(
        self,
        node: int,
        *,
        max_restarts: int | None = None,
        endpoint: str | None = None,
        skew_seconds: float = 0.0,
        wrap: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """An agent on this node; ``wrap`` is a command that runs it."""
        restarts = self._max_restarts if max_restarts is None else max_restarts
        if self._is_keepstep_run:
            words = [*wrap, sys.executable, "-c", _KEEPSTEP, "run"]
            words += ["--log-dir", str(self.log_directory(node))]
        else:
            words = [*wrap, sys.executable, "-m", "torch.distributed.run"]
            words += ["--max-restarts", str(restarts)]
        words += ["--nnodes", self._bounds]
        words += ["--nproc-per-node", str(self._workers_per_node)]
        words += ["--rdzv-backend", "keepstep", "--rdzv-id", "job"]
        words += ["--rdzv-endpoint", endpoint or self.endpoint]
        words += ["--local-addr", self.network.address(node)]
        if self._conf:
            words += ["--rdzv-conf", ",".join(f"{k}={v}" for k, v in self._conf.items())]
        clock = {"SKEW_FILE": str(self._clock(node))} if skew_seconds else {}
        if skew_seconds:
            self.set_clock(node, skew_seconds)
        environ = {"LIGHT_NODE": str(node), **clock, **(environ or {})}
        command = [*words, *options, *self._worker]
        self.agents[node] = self._start(node, command, f"node-{node}", environ)

    def start_all(self) -> None:
        for node in range(self.count):
            self.start(node)

    def tell(self, node: int) -> None:
        """SIGTERM to the agent alone, as a scheduler sends it."""
        self.agents[node].send_signal(signal.SIGTERM)

    def kill_node(self, node: int) -> None:
        """SIGKILL to the agent and all its descendants."""
        kill_tree(self.agents[node].pid)
        self.agents[node].wait()

    def kill_worker(self, node: int) -> None:
        """SIGKILL to the worker that this node runs now."""
        os.kill(self.newest(node)["pid"], signal.SIGKILL)

    def set_clock(self, node: int, skew_seconds: float) -> None:
        """Put the clock of a node that was started with a wrong one so far ahead."""
        draft = self._clock(node).with_suffix(".new")
        draft.write_text(str(skew_seconds))
        draft.replace(self._clock(node))

    def finish(self) -> None:
        """Have all workers end well after their next step."""
        (self.records_path / "finish").touch()

    def records(self) -> list[dict[str, Any]]:
        """What the workers wrote down, in order of time."""
        lines = [
            json.loads(line)
            for path in self.records_path.glob("*.jsonl")
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        return sorted(lines, key=lambda line: float(line["at"]))

    def newest(self, node: int) -> dict[str, Any]:
        return [line for line in self.records() if line["node"] == str(node)][-1]

    def rounds(self) -> dict[int, int]:
        """By round in which a step was made: how many nodes took part."""
        return {r["round"]: r["sum"] for r in self.records() if r["event"] == "step"}

    def wait_for_world(
        self, size: int, *, after_round: int = 0, seconds: float = _LONGEST_SECONDS
    ) -> int:
        """Until so many nodes have made a step together; the round in which they did."""

        def stepping() -> list[int]:
            return [
                number
                for number, world_size in self.rounds().items()
                if world_size == size and number > after_round
            ]

        self.wait_until(stepping, f"a world of {size} after round {after_round}", seconds)
        return stepping()[0]

    def wait_for_steps(self, round_number: int, step: int) -> None:
        """Until rank 0 of that round has come so far."""

        def is_there() -> bool:
            records = self.records()
            return any(r["round"] == round_number and r.get("step", 0) >= step for r in records)

        self.wait_until(is_there, f"step {step} of round {round_number}")

    def wait_until(
        self, condition: Callable[[], object], what: str, seconds: float = _LONGEST_SECONDS
    ) -> None:
        """*Raises:* TimeoutError with the end of all logs."""
        give_up = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > give_up:
                raise TimeoutError(f"waited {seconds:g} s, but not: {what}\n{self.logs()}")
            time.sleep(0.05)

    def log_directory(self, node: int) -> Path:
        """Of an agent that is ``keepstep run``."""
        return self.directory / f"logs-{node}"

    def log(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self) -> str:
        paths = sorted(self.directory.glob("*.log"))
        return "\n".join(f"--- {path.stem}\n{self.log(path.stem)[-2500:]}" for path in paths)

    def _clock(self, node: int) -> Path:
        return self.directory / f"clock-{node}"

    def _start(
        self, machine: int, words: list[str], name: str, environ: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        inherited = {"PYTHONPATH": self.python_path, "OMP_NUM_THREADS": "1"}
        network = {"GLOO_SOCKET_IFNAME": self.network.interface}
        light = {"LIGHT_WORKER": str(self.records_path)}
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  # agents are processes
                self.network.command(machine, words),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **self._inherited,
                    **inherited,
                    **network,
                    **light,
                    **self._environ,
                    **environ,
                },
            )
        self._started.append(process)
        return process


def kill_tree(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """A signal to a process and all its descendants, also those in sessions of their own."""
    for each in [*_descendants(pid), pid]:
        try:
            os.kill(each, number)
        except ProcessLookupError:
            continue


def _descendants(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield from _descendants(child)
        yield child


def _python_path(directory: Path) -> str:
    """Where agents find keepstep, its entry point if it is not installed, and the skewed clock."""
    source = Path(__file__).parents[2]
    paths = [str(source), os.environ.get("PYTHONPATH", "")]
    plugin = directory / "plugin"
    write_plugin(plugin)
    guard = "import os\nif 'SKEW_FILE' in os.environ:\n"
    indented = "".join(f"    {line}\n" for line in _SKEWED_CLOCK.splitlines())
    (plugin / "sitecustomize.py").write_text(guard + indented)
    return os.pathsep.join([str(plugin), *filter(None, paths)])


def write_plugin(directory: Path) -> None:
    """What has torchrun find keepstep's rendezvous, if keepstep is not installed."""
    directory.mkdir(parents=True, exist_ok=True)
    if "keepstep" in entry_points(group="torchrun.handlers").names:
        return
    info = directory / "keepstep-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: keepstep\nVersion: 0\n")
    entry = "[torchrun.handlers]\nkeepstep = keepstep.launch.agent:get_handler\n"
    (info / "entry_points.txt").write_text(entry)
