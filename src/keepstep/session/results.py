"""What the verbs of a session return."""

from dataclasses import dataclass, field

from keepstep.commit.layout import CheckpointId
from keepstep.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that was passed over at a resume, and why."""

    checkpoint: CheckpointId
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Work that was done after the last commit, and has to be done again."""

    last_step: int
    """The last step that was run."""
    committed_step: int
    samples: int
    seconds: float
    """Between the committed step and the last one, by the clock of the rank that ran them."""

    @property
    def steps(self) -> int:
        return self.last_step - self.committed_step


@dataclass(frozen=True, slots=True)
class Restored:
    """Where training goes on. The same on all ranks."""

    step: int
    checkpoint: CheckpointId | None
    """``None`` for a fresh start."""
    generation: int
    world_size_was: int | None
    state_digest: str | None = None
    """Content digest of what is now in the tracked objects; equal to the checkpoint's."""
    skipped: tuple[Skipped, ...] = field(default=())
    lost: Lost | None = None
    """``None`` if there is no record of earlier work."""
    left: tuple[str, ...] = field(default=())
    """Names of what stays as it was built, because it did not fit and was allowed not to."""
    initialized_from: str | None = None
    """Where a fresh start took its weights from."""

    @property
    def fresh(self) -> bool:
        return self.checkpoint is None


@dataclass(frozen=True, slots=True)
class Stop:
    """The ranks agreed to leave the loop after this step."""

    reason: str
    step: int
    is_preempted: bool = False
    """Whether a rank was told to go; otherwise one asked to stop."""
    is_committed: bool = True
    """Whether the step is; if not, there was no time, or the save has failed."""

    @property
    def exit_code(self) -> ExitCode:
        """What the process should end with, so that its scheduler knows."""
        if not self.is_preempted:
            return ExitCode.OK
        return ExitCode.PREEMPTED if self.is_committed else ExitCode.PREEMPTED_UNSAVED
