"""What a drill is: which jobs are started in which order, what befalls them, who judges."""

from dataclasses import dataclass
from enum import StrEnum

STEPS = 40
SAVE_EVERY = 5
KILL_STEP = 20
"""A save is due at it, so that every site of a save is passed."""

REFERENCE_WORLD_SIZE = 2
"""Of the uninterrupted runs that drills are compared with."""

SETTINGS: dict[str, object] = {
    "batch.global_size": 12,
    "batch.microbatch": 2,  # six per step, which four ranks cannot share evenly
    "data.context": 32,
    "data.validation_samples": 12,
    "model.layers": 2,
    "model.width": 96,  # shards of more than one checksum block
    "model.heads": 4,
    "model.dropout": 0.1,  # draws from the random generators, which have to come back
    "optim.warmup_steps": 5,
    "optim.decay_steps": STEPS,
    "train.steps": STEPS,
    "train.evaluate_every": KILL_STEP,
    "train.log_samples": "true",  # the order of samples is judged from the ledger
    "checkpoint.every": SAVE_EVERY,
}
"""Of every job in a drill: small, but with every part that a large one has."""


class Ending(StrEnum):
    """How a job is expected to end."""

    COMPLETE = "complete"
    KILLED = "killed"
    DAMAGED = "damaged"
    STOPPED = "stopped"
    """It does not end: its ranks are stopped, and stay so until :class:`Thaw`."""
    FENCED = "fenced"


class DamageKind(StrEnum):
    """What becomes of a file."""

    FLIP = "flip"
    """One bit of one byte."""
    ZERO = "zero"
    """All bytes of one checksum block."""
    TRUNCATE = "truncate"
    DELETE = "delete"


class Place(StrEnum):
    """Which file of a checkpoint."""

    SHARD = "shard"
    INDEX = "index"
    MANIFEST = "manifest"
    METADATA = "metadata"


@dataclass(frozen=True, slots=True)
class Leg:
    """One job on the run, from its start to its end."""

    world_size: int
    failpoints: str = ""
    max_restarts: int = 0
    ending: Ending = Ending.COMPLETE


@dataclass(frozen=True, slots=True)
class Spoil:
    """Damage committed checkpoints, newest first: one place in each."""

    kind: DamageKind
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Thaw:
    """Let the stopped job go on; it ends."""

    ending: Ending = Ending.FENCED


Act = Leg | Spoil | Thaw


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """One rehearsal."""

    name: str
    description: str
    strategy: str
    acts: tuple[Act, ...]
    judges: tuple[str, ...]
    """Names in ``judge.JUDGES``."""
    continues_reference: bool = False
    """Whether the run begins as a copy of the uninterrupted one."""
    settings: tuple[tuple[str, object], ...] = ()
    """Beyond :data:`SETTINGS`."""
    samples_per_epoch: int | None = None
    """``None`` where the run is shorter than an epoch."""
    needs: str | None = None
    """A module without which the drill is skipped."""
