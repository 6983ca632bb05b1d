"""What a store holds: what everybody sees, and what is left of it when the power is cut."""

from bisect import bisect_left, insort
from collections.abc import Callable
from random import Random

from keepstep.errors import ObjectExists

Observer = Callable[[str, bytes | None, bytes | None], None]
"""Told of a key, and of what was and what is now under it."""

_LAST = "\x7f"
"""Sorts after every character of a key."""


class Media:
    """Objects that are seen; and of those that are not durable yet, what the disk may hold.

    Args:
        observe: Called after every change that everybody sees.
    """

    def __init__(self, observe: Observer) -> None:
        self.seen: dict[str, bytes] = {}
        self._names: list[str] = []
        self._unsynced: dict[str, list[bytes | None]] = {}
        self._torn: set[str] = set()
        self._observe = observe

    def set(
        self, key: str, data: bytes | None, *, is_durable: bool, may_tear: bool = False
    ) -> None:
        """Put something, or nothing, under a key."""
        before = self.seen.get(key)
        if is_durable:
            self.sync(key)
        else:
            self._unsynced.setdefault(key, [before])
            if may_tear:
                self._torn.add(key)
        if data is None:
            if self.seen.pop(key, None) is not None:
                del self._names[bisect_left(self._names, key)]
        else:
            if before is None:
                insort(self._names, key)
            self.seen[key] = data
        if data is not before:
            self._observe(key, before, data)

    def create(self, key: str, data: bytes, *, is_durable: bool, may_tear: bool = False) -> None:
        """*Raises:* ``ObjectExists``."""
        if key in self.seen:
            raise ObjectExists("the name is taken", key=key)
        self.set(key, data, is_durable=is_durable, may_tear=may_tear)

    def names(self, prefix: str) -> list[str]:
        """What is seen below a prefix, in order."""
        start = bisect_left(self._names, prefix)
        return self._names[start : bisect_left(self._names, prefix + _LAST, start)]

    def sync(self, key: str) -> None:
        """What is under the key now survives.

        So does every earlier change of names: journals keep their order. Content does not.
        """
        if self._unsynced:
            self._torn.discard(key)
            self._unsynced = {k: was for k, was in self._unsynced.items() if k in self._torn}

    def is_durable(self, key: str) -> bool:
        """Whether what is seen under a key survives a power cut."""
        return key in self.seen and key not in self._unsynced

    def cut_power(self, random: Random) -> list[str]:
        """Lose what was not durable: the old is there again, or the new, or a torn one."""
        lost = []
        for key, (before,) in list(self._unsynced.items()):
            after = self.seen.get(key)
            choices = [before, after]
            if key in self._torn and after is not None:
                choices += [after[: random.randrange(len(after) + 1)], bytes(len(after))]
            left = random.choice(choices)
            lost.append(f"{key}: {_in_words(left, before, after)}")
            self.set(key, left, is_durable=True)
        return lost


def _in_words(left: bytes | None, before: bytes | None, after: bytes | None) -> str:
    if left == after:
        return "kept"
    return "dropped" if left == before else "torn"
