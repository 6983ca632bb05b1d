"""What happened in the cluster, as ``kubectl get events`` would tell."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    at_seconds: float
    """On the cluster's clock."""
    subject: str
    """``Pod/name``, ``Job/name``, ``Node/name``."""
    reason: str
    message: str
    is_warning: bool = False

    def __str__(self) -> str:
        kind = "Warning" if self.is_warning else "Normal"
        return (
            f"{self.at_seconds:8.1f}s  {kind:<7}  {self.reason:<22}  {self.subject}: {self.message}"
        )


@dataclass(slots=True)
class Events:
    """In order of time."""

    all: list[Event] = field(default_factory=list)

    def add(
        self,
        at_seconds: float,
        subject: str,
        reason: str,
        message: str,
        *,
        is_warning: bool = False,
    ) -> None:
        self.all.append(Event(at_seconds, subject, reason, message, is_warning))

    def of(self, subject: str) -> list[Event]:
        return [event for event in self.all if event.subject == subject]

    def reasons(self, subject: str) -> list[str]:
        return [event.reason for event in self.of(subject)]
