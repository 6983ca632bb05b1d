"""What the verbs of a session return."""

from dataclasses import dataclass, field

from keepstep.commit.layout import CheckpointId


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
    """The ranks agreed to leave the loop after this step, for which a save was made."""

    reason: str
    step: int
