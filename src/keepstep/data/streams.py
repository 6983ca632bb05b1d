"""The loader of streaming sources, which know their position themselves.

A global batch has ``S = global_size / microbatch`` microbatches, and there are ``S`` streams:
microbatch ``s`` always comes from stream ``s``. Whichever rank runs it steps that stream. So the
streams, and with them what a step sees, do not depend on the world.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import torch.distributed as dist
from torch.utils.data import Dataset, default_collate

from keepstep.data.draws import draw_seed, own_draws, seed_draws
from keepstep.data.passes import PassLoader
from keepstep.data.sampler import GlobalSampler
from keepstep.data.workers import read_ahead
from keepstep.errors import ConfigError
from keepstep.world import World

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """What a streaming library offers, or a class of one's own.

    ``load_state_dict`` is called before ``iter``; ``state_dict`` in between tells the position of
    the sample that comes next. ``set_epoch(number)``, if there is one, is called before ``iter``.
    """

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


OpenStream = Callable[[int, int], Stream]


class StreamLoader(PassLoader):
    """Batches of streams that carry their own state.

    ::

        def open_stream(index, count):
            return dataset.shard(num_shards=count, index=index)

        loader = keepstep.data.StreamLoader(open_stream, global_size=256, microbatch=8)

    Goes on exactly, at any world size, as far as each stream's own state goes. What that leaves out
    is lost or repeated: many libraries do not save the content of a shuffle buffer, for one. A
    stream that ends begins its next epoch; no other stream waits for it.

    *Ranks:* local, but for :meth:`state_dict`.

    Args:
        open_stream: Opens stream ``index`` of ``count``; together they are the data. Called where
            the stream is read, in a worker or in the loop.
        global_size: Samples of a step, over all ranks.
        microbatch: Samples of a pass; divides ``global_size``.
        seed: Of what is drawn while reading.
        num_workers: Processes that read ahead, at most: a stream stays with one of them, so it is
            the greatest number up to this that divides a rank's microbatches. 0 reads in the loop.
        prefetch: Passes that each worker reads ahead.
        collate: Makes a batch of a list of samples; ``torch.utils.data.default_collate``.
        world: Who this process is; taken from the process group by default.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        *,
        global_size: int,
        microbatch: int,
        seed: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        collate: Callable[[list[Any]], Any] = default_collate,
        world: World | None = None,
    ) -> None:
        super().__init__(num_workers=num_workers, prefetch=prefetch, world=world)
        self._open_stream = open_stream
        self._seed = seed
        self._collate = collate
        self._cut = GlobalSampler(
            num_samples=1, global_size=global_size, microbatch=microbatch, seed=seed
        )
        self._positions = [_BEGINNING] * self._cut.num_slots
        """Of every stream; up to date for those of this rank."""
        self._taken: dict[int, _Position] = {}
        """Of the streams of this rank, once the step in progress has read from them."""

    def state_dict(self) -> dict[str, Any]:
        """The positions of all streams. The same on all ranks.

        *Ranks:* collective.
        """
        return {
            "samples": self._samples,
            "seed": self._seed,
            "num_streams": self._cut.num_slots,
            "streams": [position._asdict() for position in self._all_positions()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a loader was. *Raises:* ``ConfigError`` if it had other streams."""
        mine = {"seed": self._seed, "num_streams": self._cut.num_slots}
        for name, value in mine.items():
            if (was := state.get(name)) != value:
                raise ConfigError(
                    f"data: {name} was {was} when the checkpoint was made and is {value} "
                    "now, so that the positions of the streams mean nothing: set global_size, "
                    "microbatch and seed to what they were, or start a new run"
                )
        self._reader = None
        self._samples = state["samples"]
        self._positions = [_Position(**position) for position in state["streams"]]
        if self._world().is_coordinator:
            logger.info(
                "data: %d streams go on at sample %d; what their own state_dict() leaves out, such "
                "as a shuffle buffer, is lost or repeated",
                len(self._positions),
                self._samples,
            )

    def _sampler(self) -> GlobalSampler:
        return self._cut

    def _read(self, owned: range) -> Iterator[Any]:
        source = _Fetch(self._open_stream, self._positions, self._collate, self._cut)
        # Requests go to the workers in turn: so a stream always goes to the same one.
        workers = _greatest_divisor(len(owned), self._num_workers)
        return read_ahead(source, cycle(owned), num_workers=workers, prefetch=self._prefetch)

    def _take(self, read: Any) -> Any:
        index, position, batch = read
        self._taken[index] = position
        return batch

    def _consume(self, samples: int) -> None:
        super()._consume(samples)
        for index, position in self._taken.items():
            self._positions[index] = position

    def _all_positions(self) -> list["_Position"]:
        world = self._world()
        if world.world_size == 1:
            return self._positions
        if not dist.is_initialized():
            raise ConfigError(
                "the positions of streams are gathered from all ranks: call init_process_group()"
            )
        mine = {index: self._positions[index] for index in self._cut.owned(world)}
        gathered: list[dict[int, _Position]] = [{}] * world.world_size
        dist.all_gather_object(gathered, mine)
        found = {index: position for part in gathered for index, position in part.items()}
        return [found[index] for index in range(self._cut.num_slots)]


class _Position(NamedTuple):
    epoch: int
    batches: int
    """Read so far, over all epochs."""
    state: dict[str, Any] | None
    """The stream's own; none at the beginning of an epoch."""


_BEGINNING = _Position(epoch=0, batches=0, state=None)


class _Fetch(Dataset[Any]):
    """Reads the next microbatch of a stream, and where the stream is then."""

    def __init__(
        self,
        open_stream: OpenStream,
        positions: list[_Position],
        collate: Callable[[list[Any]], Any],
        cut: GlobalSampler,
    ) -> None:
        self._open_stream = open_stream
        self._positions = list(positions)
        self._collate = collate
        self._cut = cut
        self._readers: dict[int, _Reader] = {}

    def __getitem__(self, index: int) -> tuple[int, _Position, Any]:
        with own_draws():
            if index not in self._readers:
                self._readers[index] = _Reader(
                    self._open_stream, index, self._cut.num_slots, self._positions[index]
                )
            reader = self._readers[index]
            seed_draws(draw_seed(self._cut.seed, index, reader.batches))
            batch = self._collate(reader.take(self._cut.microbatch))
            return index, reader.position(), batch


class _Reader:
    """A stream that never ends."""

    def __init__(
        self, open_stream: OpenStream, index: int, count: int, position: _Position
    ) -> None:
        self._open_stream = open_stream
        self._index = index
        self._count = count
        self._epoch = position.epoch
        self.batches = position.batches
        self._open(position.state)

    def take(self, count: int) -> list[Any]:
        """The next samples."""
        samples: list[Any] = []
        while len(samples) < count:
            try:
                samples.append(next(self._samples))
                self._is_untouched = False
            except StopIteration:
                self._begin_next_epoch()
        self.batches += 1
        return samples

    def position(self) -> _Position:
        """Copied: streams may go on changing the state that they gave out."""
        return _Position(self._epoch, self.batches, copy.deepcopy(self._stream.state_dict()))

    def _begin_next_epoch(self) -> None:
        if self._is_untouched:
            raise ConfigError(
                f"stream {self._index} of {self._count} has no samples: the data has too few "
                "shards to be split so often; use fewer, larger microbatches"
            )
        self._epoch += 1
        self._open(None)

    def _open(self, state: dict[str, Any] | None) -> None:
        self._stream = self._open_stream(self._index, self._count)
        for method in ("state_dict", "load_state_dict"):
            if not hasattr(self._stream, method):
                raise ConfigError(
                    f"stream {self._index} is a {type(self._stream).__name__} without "
                    f"{method}(): its position cannot be kept"
                )
        if hasattr(self._stream, "set_epoch"):
            self._stream.set_epoch(self._epoch)
        if state is not None:
            self._stream.load_state_dict(state)
        self._samples = iter(self._stream)
        self._is_untouched = state is None


def _greatest_divisor(number: int, limit: int) -> int:
    return max((n for n in range(1, limit + 1) if number % n == 0), default=0)
