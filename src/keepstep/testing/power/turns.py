"""Ranks that are threads and take turns, so that what a job does is the same each time."""

import random
import threading
from collections.abc import Callable

from keepstep.errors import InternalError


class Turns:
    """One rank runs at a time, until it waits for a key that is not there.

    Args:
        check: Called when a rank is given the turn; what it raises ends that rank.
        seed: Of the order.
    """

    def __init__(self, world_size: int, check: Callable[[], None], seed: int = 0) -> None:
        self._check = check
        self._random = random.Random(seed)
        self._values: dict[str, bytes] = {}
        self._wanted: dict[int, str | None] = dict.fromkeys(range(world_size))
        self._turn = 0
        self._changed = threading.Condition()

    def run(self, rank: int, work: Callable[[], None]) -> None:
        """Do a rank's work, when it is its turn."""
        try:
            self._await_turn(rank)
            work()
        finally:
            with self._changed:
                del self._wanted[rank]
                self._pass_on()

    def store_of(self, rank: int) -> "StoreOfRank":
        """What the rank's barrier needs."""
        return StoreOfRank(self, rank)

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self._values[key] = value

    def delete(self, key: str) -> None:
        with self._changed:
            self._values.pop(key, None)

    def get(self, key: str) -> bytes | None:
        with self._changed:
            return self._values.get(key)

    def wait(self, rank: int, key: str) -> bytes:
        """Until the key is there and it is this rank's turn."""
        with self._changed:
            if key not in self._values:
                self._wanted[rank] = key
                self._pass_on()
        self._await_turn(rank)
        with self._changed:
            self._wanted[rank] = None
            return self._values[key]

    def _await_turn(self, rank: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == rank)
        self._check()

    def _pass_on(self) -> None:
        able = [r for r, key in self._wanted.items() if key is None or key in self._values]
        if not able and self._wanted:
            # All that are left wait for one that is gone: each finds out why from the check.
            able = list(self._wanted)
        if able:
            self._turn = self._random.choice(able)
        self._changed.notify_all()


class StoreOfRank:
    """Keeps the contract of :class:`~keepstep.commit.barrier.Store`; waits do not run out."""

    def __init__(self, turns: Turns, rank: int) -> None:
        self._turns = turns
        self._rank = rank

    def set(self, key: str, value: bytes) -> None:
        self._turns.set(key, value)

    def wait(self, key: str, timeout_seconds: float) -> bytes | None:
        if timeout_seconds <= 0:
            return self._turns.get(key)
        try:
            return self._turns.wait(self._rank, key)
        except KeyError:
            raise InternalError(f"rank {self._rank} waits for {key}, and nobody is left") from None

    def delete(self, key: str) -> None:
        self._turns.delete(key)
