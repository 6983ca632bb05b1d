"""What the Job controller sees of a pod."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """Of a pod."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def is_final(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class PodFacts:
    """Of one pod, at one time."""

    name: str
    index: int
    phase: Phase
    is_terminating: bool = False
    """Whether its deletion was asked for."""
    exit_codes: Mapping[str, int] = field(default_factory=dict)
    """By container, of those that have ended; init containers last."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Status by type."""
    ended_seconds: float = 0.0
    """When its last container ended, on the cluster's clock."""
