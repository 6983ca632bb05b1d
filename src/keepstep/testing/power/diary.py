"""What a run was promised before the power went, and what was under way."""

from collections.abc import Callable
from dataclasses import dataclass, field

from keepstep.commit.layout import CheckpointId


@dataclass
class Diary:
    """A :class:`~keepstep.testing.power.job.Witness`; every line is written while the power is on.

    Args:
        at_once: Runs what it is given, or raises if the power is off: then nothing was promised.
    """

    at_once: Callable[[Callable[[], None]], None] = lambda action: action()
    chapter: str = ""
    head: CheckpointId | None = None
    """What a start has to go on from, unless :attr:`next_head` has become real."""
    next_head: CheckpointId | None = None
    generation: int = 0
    """The newest that was claimed."""
    commits: set[CheckpointId] = field(default_factory=set)
    pins: set[CheckpointId] = field(default_factory=set)
    unpins: set[CheckpointId] = field(default_factory=set)
    doomed: set[CheckpointId] = field(default_factory=set)
    """What a prune was told to remove."""
    gone: set[CheckpointId] = field(default_factory=set)
    recorded: set[str] = field(default_factory=set)
    """Checkpoints that some ledger may name."""

    def claimed(self, generation: int) -> None:
        self.at_once(lambda: setattr(self, "generation", generation))

    def saving(self, attempt: CheckpointId) -> None:
        self.next_head = attempt

    def committed(self, attempt: CheckpointId) -> None:
        def write() -> None:
            self.commits.add(attempt)
            self.head = attempt

        self.at_once(write)

    def recording(self, checkpoint: str) -> None:
        self.recorded.add(checkpoint)

    def rolled_back(self, generation: int, head: CheckpointId) -> None:
        def write() -> None:
            self.generation, self.head, self.next_head = generation, head, None

        self.at_once(write)

    def pinned(self, checkpoint: CheckpointId) -> None:
        self.at_once(lambda: self.pins.add(checkpoint))

    def unpinning(self, checkpoint: CheckpointId) -> None:
        self.pins.discard(checkpoint)

    def unpinned(self, checkpoint: CheckpointId) -> None:
        self.at_once(lambda: self.unpins.add(checkpoint))

    def pruned(self) -> None:
        self.at_once(lambda: self.gone.update(self.doomed))

    @property
    def possible_heads(self) -> set[CheckpointId | None]:
        """What a start may go on from."""
        return {self.head, self.next_head or self.head}
