"""What becomes of nodes, and of the pods on them, as time goes by."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from keepstep.testing.cluster.node import Node, toleration_seconds
from keepstep.testing.cluster.pod import Pod

_UNREACHABLE = "node.kubernetes.io/unreachable"


@dataclass(frozen=True, slots=True)
class Times:
    """Defaults of a cluster, in its own seconds; ``seconds_scale`` makes them shorter in tests.

    Grace and the periods of probes are real seconds always: real processes live by them.
    """

    seconds_scale: float = 1.0
    node_monitor_grace_seconds: float = 50.0
    """Silence after which a node counts as unreachable."""
    node_removal_seconds: float = 60.0
    """After which a cloud has removed the Node of a machine that is no more."""
    orphan_quarantine_seconds: float = 40.0
    """After which pods of a node that is no more are collected."""
    job_backoff_seconds: float = 10.0
    longest_job_backoff_seconds: float = 600.0

    def scaled(self, seconds: float) -> float:
        return seconds * self.seconds_scale


class NodeController:
    """Kubelet's shutdown manager, node lifecycle controller, cloud and pod garbage collector."""

    def __init__(self, times: Times, tell: Callable[..., None]) -> None:
        self._times = times
        self._tell = tell

    def preempt(
        self, node: Node, pods: Iterable[Pod], now_seconds: float, grace_seconds: float
    ) -> None:
        """The machine goes in ``grace_seconds``, and its kubelet knows: graceful node shutdown."""
        node.shuts_down_at_seconds = now_seconds + grace_seconds
        self._tell(f"Node/{node.name}", "NodeShutdown", f"preempted, {grace_seconds:g} s to go")
        for pod in pods:
            pod.disrupt("TerminationByKubelet", "Pod was terminated due to node shutdown")
            pod.reason = "Terminated"
            grace = min(grace_seconds, pod.identity.grace_seconds)
            pod.stop(now_seconds, grace, must_fail=True)

    def step(self, node: Node, pods: Sequence[Pod], now_seconds: float) -> None:
        """``pods``: those on this node that are not over."""
        if node.is_gone:
            self._collect(node, pods, now_seconds)
        elif node.silent_since_seconds is not None:
            self._watch_silence(node, pods, now_seconds)
        elif node.shuts_down_at_seconds is not None:
            self._watch_shutdown(node, pods, now_seconds)

    def _watch_shutdown(self, node: Node, pods: Sequence[Pod], now_seconds: float) -> None:
        assert node.shuts_down_at_seconds is not None
        if not pods:
            node.is_gone = True
        elif now_seconds >= node.shuts_down_at_seconds + 1:  # SIGKILL was sent: nearly over
            for pod in pods:
                pod.lose()
            node.silent_since_seconds = now_seconds

    def _watch_silence(self, node: Node, pods: Sequence[Pod], now_seconds: float) -> None:
        assert node.silent_since_seconds is not None
        silence = now_seconds - node.silent_since_seconds
        if silence < self._times.scaled(self._times.node_monitor_grace_seconds):
            return
        if node.not_ready_since_seconds is None:
            node.not_ready_since_seconds = now_seconds
            self._tell(f"Node/{node.name}", "NodeNotReady", "no word from it", is_warning=True)
        since = now_seconds - node.not_ready_since_seconds
        for pod in pods:
            tolerated = toleration_seconds(pod.identity.spec, _UNREACHABLE)
            is_over = tolerated is not None and since >= self._times.scaled(tolerated)
            if is_over and not pod.is_terminating:
                pod.disrupt("DeletionByTaintManager", f"deleting due to taint {_UNREACHABLE}")
                pod.deleted_seconds = now_seconds  # nobody is there to act upon it
                self._tell(f"Pod/{pod.name}", "TaintManagerEviction", "marked for deletion")
        if since >= self._times.scaled(self._times.node_removal_seconds):
            node.is_gone = True
            node.silent_since_seconds = now_seconds
            self._tell(f"Node/{node.name}", "DeletingNode", "the cloud has no such machine")

    def _collect(self, node: Node, pods: Sequence[Pod], now_seconds: float) -> None:
        since = now_seconds - (node.silent_since_seconds or 0.0)
        if since < self._times.scaled(self._times.orphan_quarantine_seconds):
            return
        for pod in pods:
            pod.disrupt("DeletionByPodGC", "node no longer exists")
            pod.collect(now_seconds)
            self._tell(f"Pod/{pod.name}", "PodGC", "collected: its node no longer exists")
