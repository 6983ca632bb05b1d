"""What a checkpoint system has to do to be measured."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.ranks import Ranks
from benchmarks.scenario import Scenario
from benchmarks.state import TrainingState


@dataclass(frozen=True, slots=True)
class Context:
    """What all peers of a launch share."""

    scenario: Scenario
    ranks: Ranks
    state: TrainingState
    directory: Path
    """Scratch, the same for all ranks."""

    @property
    def is_alone(self) -> bool:
        return self.ranks.count == 1

    @property
    def is_replicated(self) -> bool:
        return self.scenario.strategy == "ddp"


@dataclass(frozen=True, slots=True)
class Pending:
    """An asynchronous save on its way."""

    saved: Path
    wait: Callable[[], object]
    """Blocks until durable."""
    release: Callable[[], object] = lambda: None
    """Blocks until the caller may change the tensors."""
    is_done: Callable[[], bool] | None = None
    """To be polled on the main thread instead of waiting on another, for peers that need it."""


class Peer(ABC):
    """One checkpoint system on one rank.

    *Ranks:* the constructor and all methods are collective.
    """

    name: ClassVar[str]
    is_limit: ClassVar[bool] = False
    """It moves as many bytes as the state has, not the state: nothing to check."""
    overlaps: ClassVar[bool] = False
    """The copy runs beside the next forward and backward; :attr:`Pending.release` ends it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.notes: dict[str, float] = {}
        """Figures of the last call that only the peer knows."""

    @classmethod
    def refusal(cls, scenario: Scenario) -> str | None:
        """Why it cannot take part, or ``None``. Imports what it needs."""
        del scenario
        return None

    def prepare(self) -> None:  # noqa: B027  # most need nothing
        """Get ready for the next save or load, off the clock."""

    def save(self, directory: Path) -> Path:
        """Save the state; return where, once it is durable and whole on all ranks."""
        pending = self.start(directory)
        pending.release()
        pending.wait()
        return pending.saved

    @abstractmethod
    def load(self, saved: Path) -> None:
        """Put back into the live tensors what :meth:`save` saved."""

    def start(self, directory: Path) -> Pending:
        """Begin an asynchronous save."""
        raise NotImplementedError(f"{self.name} has no asynchronous saves ({directory})")

    def close(self) -> None:  # noqa: B027  # most hold nothing
        """Let go of threads, processes and buffers."""

    def summary(self) -> Mapping[str, float]:
        """Figures about all it has done, once it is closed."""
        return {}


def report_notes(peer: Peer) -> Mapping[str, float]:
    """The peer's own figures of its last call, taken once."""
    notes, peer.notes = peer.notes, {}
    return notes
