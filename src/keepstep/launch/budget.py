"""Whether to try again: what an exit code asks for, and how often that is put up with."""

from dataclasses import dataclass
from enum import StrEnum

from keepstep.errors import FINAL_CODES, ExitCode

LONGEST_PAUSE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 0.5

_DEADLY_STARTS = 2
"""So many in a row, and the checkpoint is suspected."""

_SHARE_OF_OTHERS = 4
"""So many times the tries may end in vain because a rank of another node was gone."""

PREEMPTED = frozenset({ExitCode.PREEMPTED, ExitCode.PREEMPTED_UNSAVED})


class Demand(StrEnum):
    """What the end of a worker asks for."""

    RESTART = "restart"
    """Here and now; counted."""
    REJOIN = "rejoin"
    """Here and now, without being counted: another node leaves."""
    LEAVE = "leave"
    """This node goes; others may go on."""
    STOP = "stop"
    """A restart here would not help."""


def demand_of(exit_code: int, *, is_told: bool, is_alone: bool) -> Demand:
    """What the exit code of the first failing worker asks for.

    Args:
        is_told: Whether this node itself was told to go, before the worker ended.
        is_alone: Whether there is no other node.
    """
    if exit_code in PREEMPTED:
        return Demand.LEAVE if is_told or is_alone else Demand.REJOIN
    return Demand.STOP if exit_code in FINAL_CODES else Demand.RESTART


@dataclass(slots=True)
class Budget:
    """Incarnations without a new commit, in a row; preempted ones count for nothing.

    Args:
        tries: How many there may be.
        restarts: How many counted restarts there may be in all, if there is a limit.
    """

    tries: int
    restarts: int | None = None
    in_vain: int = 0
    """Incarnations in a row that have committed nothing."""
    of_others: int = 0
    """Of those, such as ended because another node's rank was gone: they count on that node."""
    spent: int = 0
    """Restarts that were counted."""
    newest_step: int = -1
    """The newest committed step that any incarnation has known of."""
    deadly_starts: int = 0
    """Incarnations in a row that ended between the beginning of their load and their first step."""

    _was_worth_it: bool = False

    def note_progress(self, commits: int, committed_step: int) -> None:
        """What an incarnation has reached by its end.

        If it resumed from a newer step than was known, the one before has committed that, and did
        not live to tell.
        """
        self._was_worth_it = commits > 0
        if commits or committed_step > self.newest_step:
            self.in_vain = self.of_others = 0
        self.newest_step = max(self.newest_step, committed_step)

    def charge(self, *, died_of_start: bool = False, is_of_others: bool = False) -> None:
        """That incarnation has ended by a failure.

        Args:
            died_of_start: Before its first step.
            is_of_others: Because a rank of another node was gone.
        """
        self.spent += 1
        self.deadly_starts = self.deadly_starts + 1 if died_of_start else 0
        if not self._was_worth_it:
            self.in_vain += 1
            self.of_others += is_of_others

    def take_step_over(self) -> bool:
        """Whether the try that begins is to step over the newest checkpoint; said once.

        It is, if it is the last one and those before it, several in a row, died of their start.
        """
        is_last = self.own == self.tries - 1 or self.spent == self.restarts
        if not is_last or self.deadly_starts < _DEADLY_STARTS:
            return False
        self.deadly_starts = 0
        return True

    @property
    def own(self) -> int:
        """Incarnations in a row that have committed nothing, and may have ended by this node."""
        return self.in_vain - self.of_others

    @property
    def is_spent(self) -> bool:
        """Whether that many tries were in vain, or many more by no fault of this node's."""
        return self.is_spent_here or self.of_others >= _SHARE_OF_OTHERS * self.tries

    @property
    def is_spent_here(self) -> bool:
        """Whether that many tries have ended by this node's own failure."""
        return self.own >= self.tries

    @property
    def is_out_of_restarts(self) -> bool:
        """Whether the limit in all has been passed."""
        return self.restarts is not None and self.spent > self.restarts

    @property
    def pause_seconds(self) -> float:
        """Before the next try: longer each time, to be gentle on what others share."""
        pause = _FIRST_PAUSE_SECONDS * 2.0 ** max(0, self.in_vain - 1)
        return min(pause, LONGEST_PAUSE_SECONDS)
