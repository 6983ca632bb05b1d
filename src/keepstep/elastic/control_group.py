"""Agreement among all ranks, on a group of its own.

The group is gloo on the host, whatever the training backend: its traffic shares neither the
communicator nor the stream of the training group, and its waits have a deadline of their own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from keepstep.errors import CoordinationError, KeepstepError
from keepstep.world import World

T = TypeVar("T")

_FEW = 2
"""So many values cost a reduction no more than one."""


def raise_first(problems: Mapping[int, KeepstepError]) -> None:
    """Raise the error of the lowest rank, if there is any, and say whose it is. *Ranks:* all."""
    for rank in sorted(problems):
        error = problems[rank]
        if error.rank is None:
            error.rank = rank
        raise error


class ControlGroup:
    """*Ranks:* making one and every method is collective: all ranks call, in the same order.

    *Blocks:* each method at most ``timeout_seconds``, then ``CoordinationError``.
    """

    def __init__(self, world: World, *, timeout_seconds: float) -> None:
        self._world = world
        self._timeout_seconds = timeout_seconds
        self._group: dist.ProcessGroup | None = None
        self._known: dict[int, tuple[list[int], list[int]]] = {}
        """By number of values: this rank's, and the largest, when they were last exchanged."""
        if world.world_size > 1:
            timeout = timedelta(seconds=timeout_seconds)
            self._group = self._call(lambda: dist.new_group(backend="gloo", timeout=timeout))

    @property
    def rank(self) -> int:
        return self._world.rank

    @property
    def world_size(self) -> int:
        return self._world.world_size

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over all ranks.

        Where values seldom change, as they do not from step to step, one number tells so. Gloo
        takes several times as long for more than one or two, which go around a ring in parts.
        """
        mine = [int(value) for value in values]
        if self._group is None or len(mine) <= _FEW:
            return self._reduce(mine)
        if len(mine) in self._known:
            before, found = self._known[len(mine)]
            (has_changed,) = self._reduce([mine != before])
            if not has_changed:
                return list(found)
        found = self._reduce(mine)
        self._known[len(mine)] = (mine, found)
        return list(found)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._world.world_size
        self._call(lambda: dist.all_gather_object(values, value, group=self._group))
        return values

    def exchange(
        self, sends: Iterable[tuple[int, memoryview]], receives: Iterable[tuple[int, memoryview]]
    ) -> None:
        """Send bytes to ranks and receive bytes from others, all at once.

        Whatever one rank sends to another must be what that one receives from it, in size and
        order. Buffers are neither copied nor pickled; those that are received into are filled.
        """
        works = [
            self._call(partial(start, _as_tensor(data), rank, group=self._group))
            for start, buffers in ((dist.irecv, receives), (dist.isend, sends))
            for rank, data in buffers
        ]
        for work in works:
            if work is not None:  # it is for ranks outside of the group
                self._call(work.wait)

    def decide(self, produce: Callable[[], T]) -> T:
        """Let the coordinator decide; its result, or its error, is every rank's.

        *Raises:* the ``KeepstepError`` that ``produce`` raised, on all ranks. Any other error is
        raised on the coordinator alone and told to the others.
        """
        if not self._world.is_coordinator:
            message = self._broadcast(None)
            if isinstance(message, KeepstepError):
                raise message
            return cast("T", message[0])
        try:
            result = produce()
        except KeepstepError as error:
            self._broadcast(error)
            raise
        except BaseException as error:
            self._broadcast(CoordinationError(f"rank 0 failed: {type(error).__name__}: {error}"))
            raise
        self._broadcast((result,))
        return result

    def attempt(self, act: Callable[[], Any]) -> dict[int, KeepstepError]:
        """Let every rank act; the keepstep errors that came of it, by rank, the same on every rank.

        *Raises:* any other error, where it arose; the other ranks are told.
        """
        problem: KeepstepError | None = None
        unexpected: BaseException | None = None
        try:
            act()
        except KeepstepError as error:
            problem = error
        except BaseException as error:  # noqa: BLE001  # peers must not wait for this rank
            unexpected = error
            problem = CoordinationError(f"rank {self._world.rank}: {type(error).__name__}: {error}")
        problems = self.gather(problem)
        if unexpected is not None:
            raise unexpected
        return {rank: error for rank, error in enumerate(problems) if error is not None}

    def succeed(self, act: Callable[[], Any]) -> None:
        """Let every rank act; the first error that came of it, by rank, is raised on all ranks."""
        raise_first(self.attempt(act))

    def close(self) -> None:
        """Leave. *Ranks:* local."""
        if self._group is not None:
            with suppress(RuntimeError, ValueError):  # peers may be gone already
                dist.destroy_process_group(self._group)
            self._group = None

    def _reduce(self, values: Sequence[int]) -> list[int]:
        if self._group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64, device="cpu")
        self._call(lambda: dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group))
        return [int(value) for value in tensor.tolist()]

    def _broadcast(self, message: Any) -> Any:
        if self._group is None:
            return message
        messages = [message]
        self._call(lambda: dist.broadcast_object_list(messages, src=0, group=self._group))
        return messages[0]

    def _call(self, collective: Callable[[], T]) -> T:
        try:
            return collective()
        except (RuntimeError, ValueError) as error:  # gloo has no type of its own for a lost peer
            raise CoordinationError(
                f"rank {self._world.rank} could not reach its peers within "
                f"{self._timeout_seconds:.0f} s: {error}",
                rank=self._world.rank,
            ) from error


def _as_tensor(data: memoryview) -> torch.Tensor:
    return torch.frombuffer(data, dtype=torch.uint8)
