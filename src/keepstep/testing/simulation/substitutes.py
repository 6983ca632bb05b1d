"""What the protocol's code finds in place of time, threads and chance while it is simulated."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from random import Random
from typing import Any, Self, TypeVar

from keepstep.commit import barrier, catalog, layout, lineage, pins, protocol, verify
from keepstep.commit.index import RankIndex
from keepstep.commit.layout import CheckpointId
from keepstep.commit.lineage import Generation
from keepstep.commit.manifest import Manifest
from keepstep.testing.simulation.clock import Clock
from keepstep.testing.simulation.threads import Threads

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def substituted(clock: Clock, threads: Threads, random: Random) -> Iterator[None]:
    """Within, nothing depends on the machine, and everything on the seed."""
    chance = _Chance(random)
    replaced: list[tuple[Any, str, Any]] = [
        (barrier, "time", clock),
        (barrier, "threading", threads),
        (protocol, "time", clock),
        (verify, "ThreadPoolExecutor", _InTurn),
        (layout, "secrets", chance),
        (lineage, "secrets", chance),
        *((module, "datetime", clock) for module in (catalog, lineage, pins)),
        (CheckpointId, "parse", _remembered(CheckpointId.parse)),
        *((kind, "from_bytes", _remembered(kind.from_bytes)) for kind in _DOCUMENTS),
    ]
    before = [vars(owner)[name] for owner, name, _ in replaced]
    for owner, name, substitute in replaced:
        setattr(owner, name, substitute)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(replaced, before, strict=True):
            setattr(owner, name, original)


_DOCUMENTS: tuple[Any, ...] = (Manifest, RankIndex, Generation)


def _remembered(read: Callable[..., Any]) -> Any:
    """The same reader, which knows what it has read: the same bytes are the same frozen value."""
    return staticmethod(lru_cache(maxsize=512)(read))


class _Chance:
    """Stands in for the module ``secrets``."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def token_hex(self, size_bytes: int) -> str:
        return f"{self._random.getrandbits(8 * size_bytes):0{2 * size_bytes}x}"


class _InTurn:
    """Stands in for a pool of threads."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, act: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return map(act, items)
