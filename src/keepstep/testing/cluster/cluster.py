"""A cluster: manifests in, processes out. See the package for what it is and is not."""

import random
import string
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from keepstep.testing.cluster.deployment import DeploymentController
from keepstep.testing.cluster.describe import described
from keepstep.testing.cluster.env import service_environ
from keepstep.testing.cluster.events import Events
from keepstep.testing.cluster.job_controller import JobController, JobStatus
from keepstep.testing.cluster.manifests import Manifest, Manifests
from keepstep.testing.cluster.node import Node, Pool
from keepstep.testing.cluster.node_controller import NodeController, Times
from keepstep.testing.cluster.pod import Identity, Pod
from keepstep.testing.cluster.pod_factory import make_pod
from keepstep.testing.cluster.relay import Relay
from keepstep.testing.cluster.runtime import Runtime
from keepstep.testing.cluster.scheduler import Scheduler
from keepstep.testing.cluster.services import Services
from keepstep.testing.cluster.templates import indexed_template
from keepstep.testing.cluster.volumes import Mount
from keepstep.testing.networks import Loopback, Namespaces, can_use_namespaces

_STEP_SECONDS = 0.03
_GATEWAY = 0
SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
DEFAULT_POOLS = (Pool("spot", 4, SPOT_LABELS), Pool("stable", 1))


class Cluster:
    """All objects of ``manifests``, from ``__enter__`` on.

    Nothing happens by itself: ``step`` looks at everything once, the waits call it.

    Args:
        directory: For logs, volumes and claims; logs and claims stay.
        pools: Nodes there are; the first pool in which a pod fits is taken.
        programs, environ, entrypoint: What stands in for the images, see ``Runtime``.
        is_contained: Whether pods have namespaces; default: where this user may make them.
    """

    def __init__(
        self,
        manifests: Manifests,
        directory: Path,
        *,
        pools: Sequence[Pool] = DEFAULT_POOLS,
        times: Times | None = None,
        programs: Mapping[str, Sequence[str]] | None = None,
        environ: Mapping[str, str] | None = None,
        entrypoint: Sequence[str] = (),
        is_contained: bool | None = None,
    ) -> None:
        self.manifests = manifests
        self.directory = directory
        self.times = times or Times()
        self.events = Events()
        self.pods: list[Pod] = []
        """All there ever were, oldest first."""
        self._scheduler = Scheduler(pools)
        self.jobs = {
            job["metadata"]["name"]: JobController(
                job["spec"],
                backoff_seconds=self.times.job_backoff_seconds,
                longest_backoff_seconds=self.times.longest_job_backoff_seconds,
                seconds_scale=self.times.seconds_scale,
            )
            for job in manifests.of("Job")
        }
        self.deployments = {
            each["metadata"]["name"]: DeploymentController(each["spec"])
            for each in manifests.of("Deployment")
        }
        self._node_controller = NodeController(self.times, self._tell)
        self._started = time.monotonic()
        self._relays: list[Relay] = []
        self._machines = _GATEWAY
        self._job_uids = {name: str(uuid.uuid4()) for name in self.jobs}
        self._ended: set[str] = set()
        self._told_verdicts: dict[str, int] = {}
        self.directory.mkdir(parents=True, exist_ok=True)
        contained = can_use_namespaces() if is_contained is None else is_contained
        self.network = Namespaces(1) if contained else Loopback()
        try:
            self.runtime = Runtime(
                self.network, directory, programs=programs, environ=environ, entrypoint=entrypoint
            )
            self._services = Services(manifests, self.network, _GATEWAY, directory)
        except BaseException:
            self.network.close()
            raise

    def __enter__(self) -> Self:
        """*Raises:* ``KeyError``, ``ValueError`` for what a manifest names and nobody has made."""
        try:
            self.step()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything at once."""
        for pod in self.pods:
            pod.close()
        for relay in self._relays:
            relay.close()
        self.network.close()

    @property
    def now_seconds(self) -> float:
        return time.monotonic() - self._started

    # What a person or a cloud does.

    def preempt(self, node: Node | str, grace_seconds: float = 15.0) -> None:
        """The machine goes after that time; its kubelet ends the pods in the meantime."""
        found = self._node(node)
        self._node_controller.preempt(found, self._pods_on(found), self.now_seconds, grace_seconds)

    def power_off(self, node: Node | str) -> None:
        """The machine is gone, this moment, and nobody is told."""
        found = self._node(node)
        found.silent_since_seconds = self.now_seconds
        for pod in self._pods_on(found):
            if isinstance(self.network, Namespaces):
                self.network.cut(pod.identity.machine)
            pod.lose()

    def evict(self, pod: Pod) -> None:
        """As by the eviction API, of which a drain is made."""
        pod.disrupt("EvictionByEvictionAPI", "Eviction API: evicting")
        self.delete(pod)

    def delete(self, pod: Pod, grace_seconds: float | None = None) -> None:
        """As by ``kubectl delete pod``: no condition says why."""
        pod.delete(self.now_seconds, grace_seconds)

    def roll_out(self, deployment: str) -> None:
        """As by ``kubectl rollout restart``."""
        self.deployments[deployment].roll_out()

    def expose(self, target: tuple[str, int], name: str, port: int) -> None:
        """Have pods reach a server of this machine by that name and port.

        *Raises:* ``NotImplementedError`` on loopback: give them the server's own address there.
        """
        if not isinstance(self.network, Namespaces):
            raise NotImplementedError(
                "loopback has no names: let pods use the server's own address"
            )
        address = self.network.address(_GATEWAY)
        self._relays.append(Relay(self.network.path(_GATEWAY), address, port, target))
        self._services.outside[name] = address

    # What there is to see.

    @property
    def nodes(self) -> list[Node]:
        return self._scheduler.nodes

    def command(self, words: list[str]) -> list[str]:
        """What to execute on this machine for ``words`` to be executed in the network of the pods,
        as a scraper of metrics is.
        """
        return self.network.command(_GATEWAY, words)

    def pods_of(self, name: str, index: int | None = None) -> list[Pod]:
        """Of a Job or Deployment, oldest first; of one index, if that is given."""
        return [
            pod
            for pod in self.pods
            if pod.identity.owner.partition("/")[2] == name and index in (None, pod.identity.index)
        ]

    def pod(self, name: str, index: int | None = None) -> Pod:
        """The newest of them. *Raises:* ``LookupError``."""
        found = self.pods_of(name, index)
        if not found:
            raise LookupError(f"no pod of {name}" + ("" if index is None else f", index {index}"))
        return found[-1]

    def node_of(self, pod: Pod) -> Node:
        return self._node(pod.identity.node_name)

    def job_status(self, name: str) -> JobStatus:
        return self.jobs[name].status

    def log(self, pod: Pod, container: str | None = None) -> str:
        """What a container has said, all its starts together; the first one's if none is named."""
        name = container or pod.containers[0].name
        path = self.directory / "pods" / pod.name / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def describe(self, pod: Pod) -> str:
        """As ``kubectl describe pod`` would."""
        return described(pod, self.events, self.now_seconds)

    def step(self) -> None:
        """Look at everything once."""
        now = self.now_seconds
        for pod in self._living():
            pod.step(now)
        for node in self.nodes:
            self._node_controller.step(node, self._pods_on(node), now)
        for name, job in self.jobs.items():
            self._sync_job(name, job)
        for name, deployment in self.deployments.items():
            self._sync_deployment(name, deployment)
        for pod in self.pods:
            if pod.phase.is_final and pod.name not in self._ended:
                self._ended.add(pod.name)
                self._note_end(pod)
        living = self._living()
        if self._services.publish(living):
            self.runtime.names = self._services.names

    def wait_until(
        self,
        condition: Callable[[], object],
        what: str,
        seconds: float = 120.0,
        *,
        every_seconds: float = 0.0,
    ) -> None:
        """Go on until that is so; it is looked at no more often than ``every_seconds``.

        *Raises:* ``TimeoutError`` with what there is to see.
        """
        give_up = time.monotonic() + seconds
        look_at = 0.0
        while True:
            self.step()
            now = time.monotonic()
            if now >= look_at:
                if condition():
                    return
                look_at = now + every_seconds
            if now > give_up:
                raise TimeoutError(f"waited {seconds:g} s, but not: {what}\n{self.report()}")
            time.sleep(_STEP_SECONDS)

    def wait_for_job(self, name: str, seconds: float = 120.0) -> str:
        """``Complete`` or ``Failed``."""
        status = self.job_status(name)
        self.wait_until(lambda: status.final is not None, f"the end of job {name}", seconds)
        assert status.final is not None
        return status.final.type

    def report(self) -> str:
        """Events, and the end of all logs."""
        events = "\n".join(map(str, self.events.all))
        logs = [
            f"--- {pod.name} {container.name}\n{self.log(pod, container.name)[-2000:]}"
            for pod in self.pods
            for container in pod.containers
        ]
        return "\n".join([events, *logs])

    def _tell(self, subject: str, reason: str, message: str, *, is_warning: bool = False) -> None:
        self.events.add(self.now_seconds, subject, reason, message, is_warning=is_warning)

    def _living(self) -> list[Pod]:
        return [pod for pod in self.pods if not pod.phase.is_final]

    def _pods_on(self, node: Node) -> list[Pod]:
        return [pod for pod in self._living() if pod.identity.node_name == node.name]

    def _node(self, node: Node | str) -> Node:
        return node if isinstance(node, Node) else self._scheduler.node(node)

    def _note_end(self, pod: Pod) -> None:
        self._tell(f"Pod/{pod.name}", pod.phase.value, "the pod is over")
        if isinstance(self.network, Namespaces):
            self.network.remove(pod.identity.machine)

    def _sync_job(self, name: str, job: JobController) -> None:
        pods = self.pods_of(name)
        is_final = job.status.final is not None
        orders = job.sync([pod.facts for pod in pods], self.now_seconds)
        self._tell_verdicts(name, job.status)
        for pod in pods:
            if pod.name in orders.delete:
                pod.delete(self.now_seconds)
        for index in orders.create:
            template = self.manifests.get("Job", name)["spec"]["template"]
            made = indexed_template(template, name, self._job_uids[name], index)
            self._create(f"Job/{name}", made, index)
        if job.status.final is not None and not is_final:
            final = job.status.final
            text = f"{final.reason} {final.message}".strip()
            self._tell(f"Job/{name}", final.type, text, is_warning=final.type == "Failed")

    def _tell_verdicts(self, name: str, status: JobStatus) -> None:
        told = self._told_verdicts.get(name, 0)
        self._told_verdicts[name] = len(status.verdicts)
        for pod, verdict in status.verdicts[told:]:
            where = "no rule" if verdict.rule is None else f"rule {verdict.rule}"
            message = f"index {pod.index}: {verdict.action} by {where}: {verdict.why}"
            self._tell(f"Job/{name}", "PodFailed", message, is_warning=True)

    def _sync_deployment(self, name: str, deployment: DeploymentController) -> None:
        pods = self.pods_of(name)
        missing, surplus = deployment.sync([pod.facts for pod in pods])
        for pod in pods:
            if pod.name in surplus:
                pod.delete(self.now_seconds)
        for _ in range(missing):
            self._create(f"Deployment/{name}", deployment.spec["template"], None)

    def _create(self, owner: str, template: Manifest, index: int | None) -> None:
        suffix = "".join(random.choices(string.ascii_lowercase + string.digits, k=5))
        base = owner.partition("/")[2] + ("" if index is None else f"-{index}")
        name = f"{base}-{suffix}"
        taken = {p.identity.node_name for p in self._living() if p.identity.owner == owner}
        node = self._scheduler.place(template["spec"], taken)
        self._machines += 1
        if isinstance(self.network, Namespaces):
            self.network.add(self._machines)
        identity = Identity(
            name,
            owner,
            template,
            node.name,
            self._machines,
            self.network.address(self._machines),
            index,
        )
        pod = make_pod(
            identity,
            self.manifests,
            self.runtime,
            self.directory,
            services=self._service_environ(template["spec"]),
            extra_mounts=self._own_mounts(name),
            now_seconds=self.now_seconds,
            seconds_scale=self.times.seconds_scale,
            tell=lambda reason, message, **more: self._tell(f"Pod/{name}", reason, message, **more),
        )
        self.pods.append(pod)
        self._services.write(pod)
        self._tell(owner, "SuccessfulCreate", f"created pod {name}")
        self._tell(f"Pod/{name}", "Scheduled", f"assigned to {node.name}, {identity.address}")

    def _own_mounts(self, pod_name: str) -> list[Mount]:
        hosts = str(self._services.hosts_path(pod_name))
        mounts = [self.runtime.image]
        return [*mounts, Mount("/etc/hosts", hosts)] if self.runtime.is_contained else mounts

    def _service_environ(self, spec: Manifest) -> dict[str, str]:
        if not spec.get("enableServiceLinks", True):
            return {}
        return service_environ(self.manifests.of("Service"), self._services.addresses)
