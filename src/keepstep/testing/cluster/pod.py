"""A pod: its containers, its phase and conditions, and how it is ended."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from keepstep.testing.cluster.container import Container
from keepstep.testing.cluster.manifests import Manifest
from keepstep.testing.cluster.pod_facts import Phase, PodFacts

DISRUPTION = "DisruptionTarget"
_CRASH_BACKOFF_SECONDS, _LONGEST_CRASH_BACKOFF_SECONDS = 10.0, 300.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a pod is."""

    name: str
    owner: str
    """``Job/name`` or ``Deployment/name``."""
    template: Manifest
    node_name: str
    machine: int
    """Of the network."""
    address: str
    index: int | None = None
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def spec(self) -> Manifest:
        found: Manifest = self.template["spec"]
        return found

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.template.get("metadata", {}).get("labels") or {})

    @property
    def grace_seconds(self) -> float:
        return float(self.spec.get("terminationGracePeriodSeconds", 30))

    @property
    def hostname(self) -> str:
        if "hostname" in self.spec:
            return str(self.spec["hostname"])
        own = self.name if self.index is None else f"{self.owner.partition('/')[2]}-{self.index}"
        return own[:63]


@dataclass(frozen=True, slots=True)
class Condition:
    """Of a pod; it is true."""

    reason: str
    message: str


@dataclass(slots=True)
class Pod:
    """One pod on its node. ``step`` is what the node's kubelet does."""

    identity: Identity
    containers: list[Container]
    init_containers: list[Container]
    created_seconds: float
    seconds_scale: float
    tell: Callable[..., None]
    phase: Phase = Phase.PENDING
    reason: str = ""
    conditions: dict[str, Condition] = field(default_factory=dict)
    deleted_seconds: float | None = None
    """When its deletion was asked for."""
    is_lost: bool = False
    """Its node has gone without a word: nobody reports on it."""
    ended_seconds: float = 0.0
    _must_fail: bool = False
    _not_before: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def is_terminating(self) -> bool:
        return self.deleted_seconds is not None

    @property
    def is_ready(self) -> bool:
        is_up = self.phase is Phase.RUNNING and not self.is_lost
        return is_up and all(container.is_ready for container in self.containers)

    @property
    def facts(self) -> PodFacts:
        """For the Job controller."""
        return PodFacts(
            name=self.name,
            index=-1 if self.identity.index is None else self.identity.index,
            phase=self.phase,
            is_terminating=self.is_terminating,
            exit_codes={
                each.name: each.termination.exit_code
                for each in (*self.containers, *self.init_containers)
                if each.termination is not None
            },
            conditions=dict.fromkeys(self.conditions, "True"),
            ended_seconds=self.ended_seconds,
        )

    def disrupt(self, reason: str, message: str) -> None:
        """Say that it is ended for no fault of its own."""
        self.conditions.setdefault(DISRUPTION, Condition(reason, message))

    def delete(self, now_seconds: float, grace_seconds: float | None = None) -> None:
        """Ask for its end, as by ``kubectl delete pod``."""
        if self.phase.is_final or self.is_terminating:
            return
        self.deleted_seconds = now_seconds
        self.stop(now_seconds, grace_seconds)

    def stop(
        self, now_seconds: float, grace_seconds: float | None = None, *, must_fail: bool = False
    ) -> None:
        """End its containers; ``must_fail``: by the kubelet's own decision."""
        self._must_fail |= must_fail
        grace = self.identity.grace_seconds if grace_seconds is None else grace_seconds
        for container in self._all():
            container.stop(now_seconds, grace)

    def lose(self) -> None:
        """Power off: everything is gone at once, and nobody is told."""
        self.is_lost = True
        for container in self._all():
            container.kill()

    def collect(self, now_seconds: float) -> None:
        """What the garbage collector does to pods of a node that is no more."""
        self._end(Phase.FAILED, now_seconds)

    def close(self) -> None:
        for container in self._all():
            container.kill()
            container.reap()

    def step(self, now_seconds: float) -> None:
        if self.is_lost or self.phase.is_final:
            return
        if self.phase is Phase.PENDING and not self._is_initialized(now_seconds):
            return
        for container in self.containers:
            container.step(now_seconds)
            if container.inside is None and not self._is_ending:
                container.start(now_seconds)
        self.phase = Phase.RUNNING
        self._restart_what_ended(now_seconds)
        if not any(each.is_running for each in self.containers):
            self._settle(now_seconds)

    @property
    def _is_ending(self) -> bool:
        return self.is_terminating or self._must_fail

    def _all(self) -> list[Container]:
        return [*self.init_containers, *self.containers]

    def _is_initialized(self, now_seconds: float) -> bool:
        for container in self.init_containers:
            container.step(now_seconds)
            if container.termination is not None and container.termination.exit_code == 0:
                continue
            if container.termination is not None or (self._is_ending and not container.is_running):
                self._end(Phase.FAILED, now_seconds)
            elif container.inside is None:
                container.start(now_seconds)
            return False
        return True

    def _restart_what_ended(self, now_seconds: float) -> None:
        policy = self.identity.spec.get("restartPolicy", "Always")
        for container in self.containers:
            end = container.termination
            if end is None or self._is_ending or policy == "Never":
                continue
            if policy == "OnFailure" and end.exit_code == 0:
                continue
            pause = min(
                _CRASH_BACKOFF_SECONDS * 2.0**container.restarts, _LONGEST_CRASH_BACKOFF_SECONDS
            )
            if now_seconds >= end.finished_seconds + pause * self.seconds_scale:
                container.start(now_seconds)

    def _settle(self, now_seconds: float) -> None:
        """All have ended: whether that is the end of the pod."""
        ends = [each.termination for each in self.containers]
        policy = self.identity.spec.get("restartPolicy", "Always")
        codes = [None if end is None else end.exit_code for end in ends]
        is_good = all(code == 0 for code in codes)
        if not self._is_ending and (policy == "Always" or (policy == "OnFailure" and not is_good)):
            return
        is_success = is_good and not self._must_fail
        self._end(Phase.SUCCEEDED if is_success else Phase.FAILED, now_seconds)

    def _end(self, phase: Phase, now_seconds: float) -> None:
        self.phase = phase
        self.ended_seconds = now_seconds
