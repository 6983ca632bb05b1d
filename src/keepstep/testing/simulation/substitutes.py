"""What the protocol's code finds in place of time, threads and chance while it is simulated."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, Self, TypeVar

from keepstep.commit import barrier, catalog, layout, lineage, pins, protocol, verify
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
    ]
    before = [getattr(module, name) for module, name, _ in replaced]
    for module, name, substitute in replaced:
        setattr(module, name, substitute)
    try:
        yield
    finally:
        for (module, name, _), original in zip(replaced, before, strict=True):
            setattr(module, name, original)


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
