"""What is noted while a drill is acted: how jobs ended, what was injected and when."""

from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

from keepstep.drills.scenario import Ending
from keepstep.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended."""

    ending: Ending
    """As expected; see :attr:`is_as_expected`."""
    code: int
    """Of the launcher: ``torchrun``, or ``keepstep run``."""
    worker_codes: tuple[int, ...]
    """Of the failed workers, as torchrun's report gives them; negative for a signal. ``keepstep
    run`` ends with that code itself."""
    seconds: float
    orphans: int
    """Processes that outlived torchrun."""
    log: Path

    @property
    def is_as_expected(self) -> bool:
        if self.orphans:
            return False
        if self.ending is Ending.COMPLETE:
            return self.code == 0
        return self.code != 0 and _EXPECTED_CODES[self.ending] in (self.code, *self.worker_codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """One thing that was done to a run."""

    time: float
    """Unix seconds."""
    kind: str
    """``kill``, ``stop``, ``damage``, ...: a word for a chart."""
    target: str
    """Whom it befell: ``rank 1``, ``agent``, a key, ..."""
    detail: str = ""
    """Where or how: the crash site and step, the kind of damage."""


_EXPECTED_CODES = {
    Ending.KILLED: -int(SIGKILL),
    Ending.DAMAGED: int(ExitCode.DAMAGED),
    Ending.FENCED: int(ExitCode.FENCED),
    Ending.PREEMPTED: int(ExitCode.PREEMPTED),
    Ending.PREEMPTED_UNSAVED: int(ExitCode.PREEMPTED_UNSAVED),
    Ending.TRANSIENT: int(ExitCode.TRANSIENT),
    Ending.HUNG: int(ExitCode.HUNG),
    Ending.NO_PROGRESS: int(ExitCode.NO_PROGRESS),
}
