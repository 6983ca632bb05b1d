"""Global batches, cut into slots that do not depend on the world, dealt out to ranks.

::

    batch     positions [p, p + global_size)                  p = samples consumed so far
    slot s    positions [p + s * microbatch, + microbatch)    same samples and shape in any world
    rank r    contiguous slots; the first S mod W ranks own one more
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keepstep.data.order import sample_ids
from keepstep.errors import ConfigError
from keepstep.world import World


@dataclass(frozen=True, slots=True)
class Slot:
    """One forward and backward pass of one rank."""

    index: int
    """Place in the global batch, ``0 .. num_slots``."""
    ids: NDArray[np.int64]
    """Samples, in the canonical order."""
    weight: float
    """What the mean loss of the slot counts: ``world_size / num_slots``, and 0 for padding. The
    *average over ranks* of the weighted sums is the mean over the global batch."""

    @property
    def is_padding(self) -> bool:
        """Whether the slot is run only because other ranks run one more."""
        return self.weight == 0


@dataclass(frozen=True, slots=True)
class GlobalSampler:
    """The global order, batch by batch. It has no state: the position is the caller's."""

    num_samples: int
    global_size: int
    microbatch: int
    seed: int

    def __post_init__(self) -> None:
        if self.microbatch < 1 or self.global_size % self.microbatch:
            raise ConfigError(
                f"batch.microbatch = {self.microbatch} does not divide "
                f"batch.global_size = {self.global_size}: choose a divisor"
            )

    @property
    def num_slots(self) -> int:
        """Slots of a global batch: the largest usable world size."""
        return self.global_size // self.microbatch

    def batch(self, position: int) -> NDArray[np.int64]:
        """Ids of the global batch that starts after ``position`` consumed samples."""
        return sample_ids(
            seed=self.seed,
            num_samples=self.num_samples,
            position=position,
            count=self.global_size,
        )

    def slots(self, position: int, world: World) -> list[Slot]:
        """What this rank runs of the batch at ``position``; equally many slots on every rank.

        Ranks that own one slot less repeat their last one with weight 0: collectives match, and a
        sample that makes this rank's gradients overflow is one that the rank has seen anyway.

        *Ranks:* local. *Raises:* ConfigError if there are more ranks than slots.
        """
        ids = self.batch(position).reshape(self.num_slots, self.microbatch)
        owned = self.owned(world)
        weight = world.world_size / self.num_slots
        slots = [Slot(index, ids[index], weight) for index in owned]
        if len(slots) < self.passes(world):
            slots.append(Slot(owned[-1], ids[owned[-1]], 0.0))
        return slots

    def check_world(self, world: World) -> None:
        """Refuse a world in which some ranks would own no slot.

        *Raises:* ConfigError naming the greatest usable world size.
        """
        if world.world_size > self.num_slots:
            raise ConfigError(
                f"world size {world.world_size}, but a batch has only {self.num_slots} slots "
                f"(batch.global_size {self.global_size} / batch.microbatch {self.microbatch}): "
                f"start with world size {self.num_slots} or less, or lower batch.microbatch"
            )

    def owned(self, world: World) -> range:
        """Indices of the slots that this rank owns."""
        self.check_world(world)
        each, more = divmod(self.num_slots, world.world_size)
        first = world.rank * each + min(world.rank, more)
        return range(first, first + each + (world.rank < more))

    def passes(self, world: World) -> int:
        """Forward and backward passes per step, the same on every rank."""
        return -(-self.num_slots // world.world_size)

    def epoch(self, position: int) -> int:
        """The epoch that the sample after ``position`` consumed ones belongs to."""
        return position // self.num_samples
