"""Arrays of tokens, one after the other, read as if they were one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TokenRun:
    """Tokens that may lie in several mapped files. Reading copies what is asked for, no more."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """The tokens from ``start`` up to ``stop``."""
        found = np.empty(stop - start, dtype=np.int64)
        done = 0
        for part in self._slices(start, stop):
            found[done : done + len(part)] = part
            done += len(part)
        return found

    def part(self, start: int, stop: int) -> "TokenRun":
        """A run of some of the tokens, mapped as they are here."""
        return TokenRun(self._slices(start, stop))

    def num_windows(self, context: int) -> int:
        """How many windows of ``context`` tokens, each with its next one, there are."""
        return max(0, (len(self) - 1) // context)

    def windows(self, ids: NDArray[np.int64], context: int) -> NDArray[np.int64]:
        """Windows by number: ``i`` is what lies from ``i * context`` up to ``(i + 1) * context``.

        Returns:
            Tokens, shape (len(ids), context + 1): inputs but for the last, targets but for the
            first.
        """
        rows = np.empty((len(ids), context + 1), dtype=np.int64)
        for row, id in zip(rows, ids.tolist(), strict=True):
            row[:] = self.read(id * context, (id + 1) * context + 1)
        return rows

    def _slices(self, start: int, stop: int) -> list[NDArray[Any]]:
        found = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            part, end = self._parts[number], int(self._ends[number])
            begin = end - len(part)
            found.append(part[start - begin : min(stop, end) - begin])
            start, number = min(stop, end), number + 1
        return found
