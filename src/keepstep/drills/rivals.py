"""Acts of two jobs on the directory of one run."""

from dataclasses import dataclass
from typing import ClassVar

from keepstep.drills.scenario import Act, Leg


@dataclass(frozen=True, slots=True)
class Rivals(Act):
    """A job is started while another is at work; both stop at a step of theirs, and go on together.

    The older one is to be fenced.
    """

    player: ClassVar[str] = "keepstep.drills.players.rivals:play_rivals"

    older: Leg
    newer: Leg

    @property
    def world_sizes(self) -> tuple[int, ...]:
        return (self.older.world_size, self.newer.world_size)


@dataclass(frozen=True, slots=True)
class AtOnce(Act):
    """Two jobs alike are started at the same moment; one of them is to be fenced."""

    player: ClassVar[str] = "keepstep.drills.players.rivals:play_at_once"

    leg: Leg

    @property
    def world_sizes(self) -> tuple[int, ...]:
        return (self.leg.world_size,)
