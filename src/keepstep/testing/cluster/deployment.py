"""What the Deployment controller decides, for strategy Recreate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keepstep.testing.cluster.pod_facts import PodFacts


@dataclass(slots=True)
class DeploymentController:
    """One Deployment. Pods that are terminating are replaced at once, as a ReplicaSet does; only
    a roll-out waits until the old ones are gone.
    """

    spec: Mapping[str, Any]
    revision: int = 1
    is_rolling_out: bool = False

    def roll_out(self) -> None:
        """Replace all pods, as by ``kubectl rollout restart``."""
        self.revision += 1
        self.is_rolling_out = True

    def sync(self, pods: Sequence[PodFacts]) -> tuple[int, tuple[str, ...]]:
        """How many pods to create, and which to delete."""
        living = [pod for pod in pods if not pod.phase.is_final]
        active = tuple(pod.name for pod in living if not pod.is_terminating)
        if self.is_rolling_out:
            if living:
                return 0, active
            self.is_rolling_out = False
        wanted = int(self.spec.get("replicas", 1))
        return max(0, wanted - len(active)), active[wanted:]
