"""The loader of map-style data sets: a global order, read ahead by workers, found again at once."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset, default_collate

from keepstep.data.draws import draw_seed, own_draws, seed_draws
from keepstep.data.order import sample_ids
from keepstep.data.passes import PassLoader
from keepstep.data.sampler import GlobalSampler
from keepstep.data.workers import read_ahead
from keepstep.errors import ConfigError
from keepstep.world import World

logger = logging.getLogger(__name__)

_MANY = "__getitems__"

Collate = Callable[[Any], Any]


class MapStyle(Protocol):
    """Samples by number. ``__getitems__(numbers)``, if there is one, reads many at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Loader(PassLoader):
    """Batches of a map-style data set.

    ::

        loader = keepstep.data.Loader(dataset, global_size=256, num_workers=4)
        session.track(model=model, optim=optim, data=loader)
        session.restore()
        inputs, targets = next(loader)

    The order is a permutation of the data set per epoch, a function of the seed alone. Batches
    cross the end of an epoch: nothing is dropped, padded or repeated. Neither the world size nor
    the number of workers changes the order.

    While a sample is read, the host's generators (``random``, ``numpy.random``, ``torch``) start
    from a seed of its own, and those of the training loop are left alone.

    Args:
        dataset: Has ``__len__`` and ``__getitem__``. If it has ``data_digest``, a resume on data
            with another one is refused.
        global_size: Samples of a step, over all ranks.
        microbatch: Samples of a pass; divides ``global_size``. By default each rank has one pass,
            and the world size must divide ``global_size``.
        seed: Of the order and of what is drawn while reading.
        num_workers: Processes that read ahead; 0 reads in the loop.
        prefetch: Passes that each worker reads ahead.
        collate: Makes a batch of a list of samples; ``torch.utils.data.default_collate``.
        world: Who this process is; taken from the process group by default.
    """

    def __init__(
        self,
        dataset: MapStyle,
        *,
        global_size: int,
        microbatch: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        collate: Collate = default_collate,
        world: World | None = None,
    ) -> None:
        super().__init__(num_workers=num_workers, prefetch=prefetch, world=world)
        self._dataset = dataset
        self._global_size = global_size
        self._microbatch = microbatch
        self._seed = seed
        self._collate = collate

    @property
    def epoch(self) -> int:
        """Of the sample that comes next."""
        return self._samples // len(self._dataset)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in. The same on all ranks."""
        return {"samples": self._samples} | self._identity()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a loader was. *Raises:* ``ConfigError`` if that was another order."""
        for name, value in self._identity().items():
            if (was := state.get(name)) != value:
                raise ConfigError(
                    f"data: {name} was {was} when the checkpoint was made and is {value} "
                    f"now: at sample {state['samples']} of another order samples would be lost or "
                    "seen twice. Give the loader what it had, or start a new run"
                )
        self._reader = None
        self._samples = state["samples"]
        if self._world().is_coordinator:
            logger.info("data: goes on at sample %d, in epoch %d", self._samples, self.epoch)

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "num_samples": len(self._dataset),
            "digest": getattr(self._dataset, "data_digest", None),
        }

    def _sampler(self) -> GlobalSampler:
        ranks = self._world().world_size
        if self._microbatch is None and self._global_size % ranks:
            raise ConfigError(
                f"global_size = {self._global_size} does not divide among {ranks} ranks: choose "
                "microbatch and iterate over passes(), or another world size"
            )
        return GlobalSampler(
            num_samples=len(self._dataset),
            global_size=self._global_size,
            microbatch=self._microbatch or self._global_size // ranks,
            seed=self._seed,
        )

    def _read(self, owned: range) -> Iterator[Any]:
        source = _Fetch(self._dataset, self._collate, self._seed)
        requests = _requests(self._order(), self._samples, self._sampler(), owned)
        return read_ahead(source, requests, num_workers=self._num_workers, prefetch=self._prefetch)

    def _order(self) -> "_Order":
        """That of the data set, if it has one of its own, as a mixture has."""
        order: _Order = getattr(self._dataset, "sample_ids", None) or _shuffled(len(self._dataset))
        return order


class _Order(Protocol):
    def __call__(self, *, seed: int, position: int, count: int) -> NDArray[np.int64]: ...


class _Request(NamedTuple):
    """One microbatch."""

    position: int
    ids: NDArray[np.int64]


class _Fetch(Dataset[Any]):
    """Reads microbatches, in a worker or in the loop, with the same result."""

    def __init__(self, dataset: MapStyle, collate: Collate, seed: int) -> None:
        self._dataset = dataset
        self._collate = collate
        self._seed = seed
        self._get_many = getattr(dataset, _MANY) if _reads_many(dataset) else None

    def __getitem__(self, request: _Request) -> Any:
        with own_draws():
            if self._get_many is not None:
                seed_draws(draw_seed(self._seed, request.position))
                samples = self._get_many(request.ids.tolist())
            else:
                samples = [
                    self._get(request.position + place, id)
                    for place, id in enumerate(request.ids.tolist())
                ]
            return self._collate(samples)

    def _get(self, position: int, id: int) -> Any:
        seed_draws(draw_seed(self._seed, position))
        try:
            return self._dataset[id]
        except Exception as error:  # whatever the data set raises; it is told which sample it was
            error.add_note(f"while reading sample {id} of the data set, at position {position}")
            raise


def _reads_many(dataset: object) -> bool:
    """A subset always has the method; it means something if the data set below has it, too."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return hasattr(dataset, _MANY)


def _shuffled(num_samples: int) -> _Order:
    def order(*, seed: int, position: int, count: int) -> NDArray[np.int64]:
        return sample_ids(seed=seed, num_samples=num_samples, position=position, count=count)

    return order


def _requests(
    order: _Order, position: int, sampler: GlobalSampler, owned: range
) -> Iterator[_Request]:
    """Microbatches of this rank from a position on, without end."""
    while True:
        for slot in owned:
            start = position + slot * sampler.microbatch
            ids = order(seed=sampler.seed, position=start, count=sampler.microbatch)
            yield _Request(start, ids)
        position += sampler.global_size
