"""Leaving the loop: asked for, or told to; agreed on by all ranks, and in time."""

import logging
import math
from dataclasses import dataclass
from enum import IntEnum

from keepstep.elastic.control_group import ControlGroup
from keepstep.elastic.notices import Notice
from keepstep.elastic.preemption import Preemption
from keepstep.observability.ledger import Ledger
from keepstep.session.results import Stop
from keepstep.session.saves import Saves
from keepstep.world import World

logger = logging.getLogger("keepstep.session")

_CAUTION = 1.3
"""A save must be expected to take this much less than there is time."""

_FOREVER_MS = 1 << 40


class Demand(IntEnum):
    """What a rank wants; of several, the largest counts."""

    GO_ON = 0
    STOP = 1
    """After a save."""
    LEAVE = 2
    """After a save, if there is time for one."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks know to be the largest demand, and the least time."""

    demand: Demand
    remaining_seconds: float
    """Until the first rank is ended by force; infinite unless ranks have to leave."""
    save_seconds: float
    """What the slowest save took lately on any rank; 0 if there was none."""

    @classmethod
    def of(cls, votes: list[int]) -> "Agreed":
        """From the largest of each of :meth:`Stopping.votes`."""
        demand, negative_ms, save_ms = votes
        remaining = math.inf if negative_ms == -_FOREVER_MS else -negative_ms / 1000
        return cls(Demand(demand), remaining, save_ms / 1000)

    def leaves_time_for(self, saves: int) -> bool:
        """Whether so many saves, one after the other, are over in time."""
        return self.save_seconds * saves * _CAUTION < self.remaining_seconds


class Stopping:
    """One rank's wish to stop, and what it has been told. *Ranks:* one object each."""

    def __init__(self, preemption: Preemption) -> None:
        self._preemption = preemption
        self._requested: str | None = None

    @property
    def notice(self) -> Notice | None:
        """What this process has been told."""
        return self._preemption.notice

    def request(self, reason: str) -> None:
        """Ask for a stop."""
        self._requested = reason

    @property
    def is_wanted(self) -> bool:
        """By this rank."""
        return self._requested is not None or self.notice is not None

    def votes(self, save_seconds: float) -> list[int]:
        """For the ranks' reduction, see :class:`Agreed`."""
        notice = self.notice
        if notice is not None:
            remaining_ms = min(int(notice.remaining_seconds * 1000), _FOREVER_MS)
            return [Demand.LEAVE, -remaining_ms, int(save_seconds * 1000)]
        demand = Demand.GO_ON if self._requested is None else Demand.STOP
        return [demand, -_FOREVER_MS, int(save_seconds * 1000)]

    def reasons(self, control: ControlGroup) -> str:
        """Why, in the words of the ranks that want it. *Ranks:* collective."""
        notice = self.notice
        mine = (notice.source if notice else None, self._requested)
        told: dict[str, list[int]] = {}
        asked: list[str] = []
        for rank, (source, requested) in enumerate(control.gather(mine)):
            if source is not None:
                told.setdefault(source, []).append(rank)
            if requested is not None:
                asked.append(requested)
        named = [f"{source} on rank {_ranks(ranks)}" for source, ranks in told.items()]
        return "; ".join([*named, *dict.fromkeys(asked)])


def report_stop(stop: Stop, agreed: Agreed, saves: Saves, ledger: Ledger, world: World) -> None:
    """What leaving costs. *Ranks:* all; the coordinator logs."""
    committed_step = saves.latest.step if saves.latest else 0
    lost_steps = stop.step - committed_step
    ledger.record(
        "stop",
        step=stop.step,
        reason=stop.reason,
        is_preempted=stop.is_preempted,
        committed_step=committed_step,
        lost_steps=lost_steps,
    )
    if not world.is_coordinator or not stop.is_preempted:
        return
    if stop.is_committed:
        logger.info("preempted (%s): committed at step %d, nothing is lost", stop.reason, stop.step)
        return
    logger.warning(
        "preempted (%s) without time to save: %.1f s were left, and a save takes %.1f s. Committed "
        "at step %d; %d steps are lost",
        stop.reason,
        agreed.remaining_seconds,
        agreed.save_seconds,
        committed_step,
        lost_steps,
    )


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:4]))
    return f"{shown} and {len(ranks) - 4} more" if len(ranks) > 4 else shown
