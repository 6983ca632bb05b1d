"""A job of several nodes under way: who is who, who is still there, what they have said."""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any, Self

from keepstep.drills.inject import send
from keepstep.drills.node_acts import Assemble
from keepstep.drills.processes import MARK, entry_of, is_stopped, marked, until
from keepstep.drills.results import Result
from keepstep.drills.run import clean
from keepstep.drills.scenario import Ending
from keepstep.drills.stage import Stage, read_fired
from keepstep.errors import BarrierTimeout
from keepstep.testing.networks import Loopback, Network, open_network
from keepstep.testing.nodes import Nodes

TIMEOUT_SECONDS = 120.0
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_ECHO_SECONDS = 1.2  # launchers ignore the same signal for a second
_FAILPOINTS_LOG = "failpoints-nodes.jsonl"
_CONF = {"last_call_timeout": 2, "settle_timeout": 1, "store_timeout": 5}
"""Nodes on one machine need not wait long for each other."""


class Cluster:
    """The nodes of a drill. Use it as a context manager: leaving kills what is left of it."""

    def __init__(self, stage: Stage, act: Assemble) -> None:
        self.directory = stage.directory / "nodes"
        self.last = 0
        """The node that was meant last."""
        self._stage = stage
        self._act = act
        self._mark = secrets.token_hex(8)
        self._began: dict[int, float] = {}
        self._ended: set[int] = set()
        self._heard: dict[int, int] = {}
        self._told: dict[int, float] = {}
        settings = {**stage.settings, **dict(act.settings)}
        overrides = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        network = stage.exits.enter_context(closing(_network(stage.storage.uri, act.count + 1)))
        self.nodes = Nodes(
            act.count,
            self.directory,
            min_nodes=act.min_nodes,
            worker=("-m", "keepstep.launch", *overrides),
            conf={name: str(value) for name, value in {**_CONF, **dict(act.conf)}.items()},
            environ={MARK: self._mark},
            inherited=clean(os.environ | stage.environ),
            is_keepstep_run=True,
            workers_per_node=act.workers_per_node,
            network=network,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End everything, also what has lost its parent."""
        try:
            until(self._kill_once, _GRACE_SECONDS)
        finally:
            self.nodes.__exit__()

    def start_store(self) -> None:
        """On a machine of its own. *Raises:* ``BarrierTimeout`` if it does not listen."""
        try:
            self.nodes.start_store()
        except TimeoutError as error:
            raise BarrierTimeout(f"no store: {error}") from error

    def start(self, node: int, failpoints: str) -> None:
        """The node's agent."""
        act = self._act
        environ = {MARK: self._mark_of(node), **self._unimportable(node)}
        options = () if act.max_restarts is None else ("--max-restarts", str(act.max_restarts))
        skews = dict(enumerate(act.skew_seconds))
        self.nodes.start(
            node,
            environ=environ | self._stage.failpoints(_FAILPOINTS_LOG, failpoints),
            options=options,
            skew_seconds=skews.get(node, 0.0),
        )
        self._began[node] = time.monotonic()
        self._ended.discard(node)

    def node(self, who: str) -> int:
        """Who is meant, if that is one."""
        kind, _, number = who.partition(" ")
        if kind == "node":
            self.last = int(number)
        elif kind == "rank":
            self.await_true(lambda: self._nodes_of(int(number)), f"there is a {who}")
            self.last = self._nodes_of(int(number))[0]
        return self.last

    def several(self, who: str) -> list[int]:
        """Who is meant, if there may be several."""
        if who in ("all", "others"):
            running = sorted(self._began.keys() - self._ended)
            return [node for node in running if who == "all" or node != self.last]
        return [self.node(who)]

    def tell(self, node: int) -> None:
        """SIGTERM to the node's agent, and not so soon that it would be taken for an echo."""
        since = time.monotonic() - self._told.get(node, -_ECHO_SECONDS)
        time.sleep(max(0.0, _ECHO_SECONDS - since))
        self._told[node] = time.monotonic()
        self.nodes.tell(node)

    def lose(self, node: int) -> None:
        """The node's agent has been killed: its end is none of its own."""
        self.nodes.agents[node].wait()
        self._ended.add(node)

    def left_alive(self, node: int) -> int:
        """How many processes of a node outlive its agent, after a moment."""
        until(lambda: not marked(self._mark_of(node)), _GRACE_SECONDS)
        return len(marked(self._mark_of(node)))

    def end(self, node: int, ending: Ending) -> Result:
        """Wait for the end of a node's agent."""
        agent = self.nodes.agents[node]
        self.await_true(lambda: agent.poll() is not None, f"node {node} ends ({ending})")
        self._ended.add(node)
        return Result(
            ending=ending,
            code=agent.wait(),
            worker_codes=(),
            seconds=time.monotonic() - self._began[node],
            orphans=self.left_alive(node),
            log=self.directory / f"node-{node}.log",
        )

    def stopped(self) -> list[int]:
        """Workers that a signal has stopped."""
        return [
            pid for node in self.several("all") for pid in self._workers(node) if is_stopped(pid)
        ]

    def release(self) -> None:
        """Let them go on."""
        send(SIGCONT, self.stopped())

    def fired(self, site: str, step: int | None) -> list[dict[str, Any]]:
        """What failpoints of this site have done at this step."""
        noted = read_fired(self._stage.directory / _FAILPOINTS_LOG)
        return [f for f in noted if f["site"] == site and step in (None, f["step"])]

    def has_said(self, node: int, words: str) -> bool:
        """Whether the node's log has these words, after those that were last found."""
        position = self.nodes.log(f"node-{node}").find(words, self._heard.get(node, 0))
        if position >= 0:
            self._heard[node] = position + len(words)
        return position >= 0

    def failure(self, node: int) -> dict[str, Any] | None:
        """What the node's launcher wrote of its last failure."""
        path = self.nodes.log_directory(node) / "failure.json"
        return json.loads(path.read_text()) if path.exists() else None

    def pids(self, node: int) -> list[int]:
        """The node's living processes, agent and workers."""
        return marked(self._mark_of(node))

    def await_true(self, condition: Callable[[], object], what: str) -> None:
        """*Raises:* ``BarrierTimeout`` if it does not come true while agents still run."""
        seconds = max(TIMEOUT_SECONDS, self._stage.timeout_seconds)
        give_up = time.monotonic() + seconds
        while not condition():
            is_over = all(agent.poll() is not None for agent in self.nodes.agents.values())
            if (is_over and not condition()) or time.monotonic() > give_up:
                how = "all agents ended" if is_over else f"{seconds:.0f} s passed"
                raise BarrierTimeout(f"{how}, but not: {what}; see {self.directory}")
            time.sleep(_POLL_SECONDS)

    def _nodes_of(self, rank: int) -> list[int]:
        return [
            node
            for node in self.several("all")
            if any(entry_of(pid, "RANK") == str(rank) for pid in self._workers(node))
        ]

    def _workers(self, node: int) -> Iterator[int]:
        agent = self.nodes.agents[node].pid
        try:
            children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        except OSError:
            return
        yield from map(int, children)

    def _mark_of(self, node: int) -> str:
        return f"{self._mark}-{node}"

    def _kill_once(self) -> bool:
        """Whether nobody was left to kill."""
        marks = [self._mark, *map(self._mark_of, self._began)]
        found = [pid for mark in marks for pid in marked(mark)]
        send(SIGKILL, found)
        return not found

    def _unimportable(self, node: int) -> dict[str, str]:
        """A module that is in the way of the one that is meant."""
        module = dict(self._act.unimportable).get(node)
        if module is None:
            return {}
        directory = self.directory / f"broken-{node}"
        directory.mkdir(exist_ok=True)
        text = f"raise ImportError('{module} is broken on this node')\n"
        (directory / f"{module}.py").write_text(text)
        return {"PYTHONPATH": f"{directory}{os.pathsep}{self.nodes.python_path}"}


def _network(uri: str, machines: int) -> Network:
    """Namespaces reach nothing outside: with a run that is kept elsewhere it is loopback."""
    return Loopback() if "://" in uri.replace("file://", "") else open_network(machines)
