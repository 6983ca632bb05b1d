"""The ranks of one launch, and the rows that each of them reports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

T = TypeVar("T")


class PeerFailedError(Exception):
    """A peer failed on some rank; it takes no further part in this launch."""


class Ranks:
    """Agreement between the processes, on a group of its own that no peer can break.

    *Ranks:* every method is collective.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank = rank
        self.count = count
        self._group = dist.new_group(backend="gloo") if count > 1 else None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Return when all ranks are here."""
        self.any(is_true=False)

    def any(self, *, is_true: bool) -> bool:
        """Whether it is true on at least one rank."""
        if self._group is None:
            return is_true
        count = torch.tensor([int(is_true)])
        dist.all_reduce(count, group=self._group)
        return bool(count)

    def attempt(self, work: Callable[[], T]) -> T:
        """Do it on all ranks. *Raises:* ``PeerFailedError`` on all ranks if it fails on one."""
        failure: BaseException | None = None
        try:
            result = work()
        except (Exception, CheckpointException) as error:  # noqa: BLE001  # a row, not a crash
            failure = error
        if self.any(is_true=failure is not None):
            if failure is None:
                raise PeerFailedError("failed on another rank")
            raise PeerFailedError(_one_line(failure)) from failure
        return result


class Rows:
    """JSON lines for the launching process, one file per rank; each line is out when written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def write(self, peer: str, work: str, repetition: int, **metrics: float | None) -> None:
        """One measurement of this rank."""
        self._line({"peer": peer, "work": work, "repetition": repetition, "metrics": metrics})

    def write_problem(self, peer: str, problem: str) -> None:
        """Why there will be no (more) measurements of a peer."""
        self._line({"peer": peer, "problem": problem})

    def close(self) -> None:
        self._file.close()

    def _line(self, fields: dict[str, Any]) -> None:
        self._file.write(json.dumps(fields) + "\n")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
