"""What a drill is: which jobs are started in which order, what befalls them, who judges."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from math import ceil
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter

REFERENCE_WORLD_SIZE = 2
"""Of the uninterrupted runs that drills are compared with."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How long the jobs of a drill are."""

    steps: int = 40
    save_every: int = 5

    @property
    def kill_step(self) -> int:
        """In the middle. A save is due at it, so that every site of a save is passed."""
        return max(1, self.num_saves // 2) * self.save_every

    @property
    def num_saves(self) -> int:
        return self.steps // self.save_every

    @property
    def num_checkpoints(self) -> int:
        """Of a run to its end, which is saved as well."""
        return ceil(self.steps / self.save_every)

    def save(self, number: int) -> int:
        """The step of a save, counted from 1."""
        return number * self.save_every


SMALL = Scale()

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
    "optim.decay_steps": SMALL.steps,
    "train.steps": SMALL.steps,
    "train.evaluate_every": SMALL.kill_step,
    "train.log_samples": "true",  # the order of samples is judged from the ledger
    "train.log_state": "true",  # what was restored, tensor by tensor
    "checkpoint.every": SMALL.save_every,
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
    PREEMPTED = "preempted"
    PREEMPTED_UNSAVED = "preempted-unsaved"
    TRANSIENT = "transient"
    HUNG = "hung"
    NO_PROGRESS = "no-progress"


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


class Act:
    """Something that is done in a drill: a frozen dataclass of JSON values that names its player.

    An act is only a description, so that listing drills imports nothing that plays them, and a
    record can be played again.
    """

    __slots__ = ()
    player: ClassVar[str]
    """``module:function``; called with the stage and the act."""

    @property
    def world_sizes(self) -> tuple[int, ...]:
        """Of the jobs that it starts, each as large as it may get."""
        return ()


@dataclass(frozen=True, slots=True)
class Leg(Act):
    """One job on the run, from its start to its end."""

    player: ClassVar[str] = "keepstep.drills.players.jobs:play_leg"

    world_size: int
    failpoints: str = ""
    max_restarts: int = 0
    ending: Ending = Ending.COMPLETE

    @property
    def world_sizes(self) -> tuple[int, ...]:
        return (self.world_size,)


@dataclass(frozen=True, slots=True)
class Thaw(Act):
    """Let the stopped job go on; it ends."""

    player: ClassVar[str] = "keepstep.drills.players.jobs:play_thaw"

    ending: Ending = Ending.FENCED


@dataclass(frozen=True, slots=True)
class Spoil(Act):
    """Damage committed checkpoints, newest first: one place in each."""

    player: ClassVar[str] = "keepstep.drills.players.damage:play_spoil"

    kind: DamageKind
    places: tuple[Place, ...]


def _act_to_json(act: Act) -> dict[str, Any]:
    cls = type(act)
    name = f"{cls.__module__}:{cls.__name__}"
    return {"act": name, **TypeAdapter(cls).dump_python(act, mode="json")}


def _act_from_json(value: object) -> object:
    """*Raises:* ``ValueError`` for what is no act of keepstep's."""
    if not isinstance(value, Mapping):
        return value
    module, _, name = str(value.get("act")).partition(":")
    if not module.startswith("keepstep.drills."):
        raise ValueError(f"{value.get('act')!r} is no act")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{value['act']!r} is no act of this version") from error
    if not (isinstance(cls, type) and issubclass(cls, Act)):
        raise ValueError(f"{value['act']!r} is no act")  # noqa: TRY004  # pydantic wants this one
    return TypeAdapter(cls).validate_python({k: v for k, v in value.items() if k != "act"})


AnyAct = Annotated[Any, BeforeValidator(_act_from_json), PlainSerializer(_act_to_json)]
"""An :class:`Act`, of whatever type: in JSON each says its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """One rehearsal."""

    name: str
    family: str
    """``D1`` to ``D18``: what sort of failure (docs/drills.md)."""
    description: str
    strategy: str
    acts: tuple[AnyAct, ...]
    judges: tuple[str, ...]
    """Names in ``judge.JUDGES``."""
    continues_reference: bool = False
    """Whether the run begins as a copy of the uninterrupted one."""
    is_open_ended: bool = False
    """Whether only the acts decide how many steps there are; they note ``steps``."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Beyond those of all drills."""
    samples_per_epoch: int | None = None
    """``None`` where the run is shorter than an epoch."""
    needs: tuple[str, ...] = ()
    """Names in ``requirements``: what a machine must have, or the drill is skipped."""
