"""What a loader gives to the loop: for each step, the passes of this rank."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import torch.distributed as dist

from keepstep.data.sampler import GlobalSampler
from keepstep.errors import ConfigError
from keepstep.observability.waits import DATA_WAITS
from keepstep.world import World


class PassLoader(ABC):
    """This rank's part of one global batch after another, without end.

    The position is what the loop has taken, not what workers have read: save it at the end of a
    step, as :meth:`keepstep.Session.tick` does.

    *Ranks:* local; equally many passes on every rank.
    """

    def __init__(self, *, num_workers: int, prefetch: int, world: World | None) -> None:
        if num_workers < 0 or prefetch < 1:
            raise ConfigError(
                f"num_workers = {num_workers}, prefetch = {prefetch}: at least 0 and at least 1"
            )
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._given_world = world
        self._reader: Iterator[Any] | None = None
        self._samples = 0

    @property
    def samples(self) -> int:
        """Samples consumed over all ranks: where the next step begins."""
        return self._samples

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """The whole part of this rank in the next step, if it is a single pass.

        *Raises:* ``ConfigError`` if it is not.
        """
        sampler, world = self._sampler(), self._world()
        if sampler.num_slots != world.world_size:
            raise ConfigError(
                f"a step has {sampler.num_slots} microbatches of {sampler.microbatch} for "
                f"{world.world_size} ranks: iterate over passes(), or leave out microbatch"
            )
        ((batch, _),) = self.passes()
        return batch

    def passes(self) -> Iterator[tuple[Any, float]]:
        """The passes of this rank in the next step: batches, and what the mean loss of each counts.

        Averaged over ranks, the weighted sums are the mean over the global batch. Ranks that own
        one microbatch less than others get their last one again, with weight 0. The step counts as
        consumed once the last pass was taken; one that is left before begins anew.
        """
        sampler, world = self._sampler(), self._world()
        owned = sampler.owned(world)
        weights = [world.world_size / sampler.num_slots] * len(owned)
        weights += [0.0] * (sampler.passes(world) - len(owned))
        if self._reader is None:
            self._reader = self._read(owned)
        start, batch = self._samples, None
        try:
            for number, weight in enumerate(weights):
                if weight:
                    with DATA_WAITS.waiting():
                        batch = self._take(next(self._reader))
                if number == len(weights) - 1:
                    self._consume(start + sampler.global_size)
                yield batch, weight
        finally:
            if self._samples == start:
                self._reader = None

    @abstractmethod
    def _sampler(self) -> GlobalSampler:
        """How a global batch is cut."""

    @abstractmethod
    def _read(self, owned: range) -> Iterator[Any]:
        """What this rank reads from the current position on, microbatch by microbatch."""

    def _take(self, read: Any) -> Any:
        """The batch in what was read."""
        return read

    def _consume(self, samples: int) -> None:
        self._samples = samples

    def _world(self) -> World:
        if self._given_world is None:
            self._given_world = _world_of_group()
        return self._given_world


def _world_of_group() -> World:
    if not dist.is_initialized():
        return World()
    return World(rank=dist.get_rank(), world_size=dist.get_world_size())
