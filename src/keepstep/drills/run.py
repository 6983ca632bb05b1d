"""One leg: a real job under torchrun, watched from outside, with nothing left behind.

torchrun starts each rank in a session of its own, so that a process group does not hold them
together. A mark in the environment does: every process of a job inherits it, and ``/proc`` tells.
"""

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Self

from keepstep.drills.inject import send
from keepstep.drills.processes import MARK, entry_of, is_stopped, marked, until
from keepstep.drills.results import Result
from keepstep.drills.scenario import Ending, Leg
from keepstep.errors import BarrierTimeout, ConfigError

TIMEOUT_SECONDS = 180.0
"""For as many steps as drills have by default."""
_GRACE_SECONDS = 5.0
KEEPSTEP = "import sys; from keepstep.cli.main import main; sys.exit(main(sys.argv[1:]))"
"""For ``python -c``: the command line, wherever it is installed."""
_LOCAL_RANK = "LOCAL_RANK"
_WORKER_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")


class Job:
    """A job under torchrun. Use it as a context manager: leaving kills what is left of it."""

    def __init__(
        self,
        leg: Leg,
        settings: Mapping[str, object],
        *,
        environ: Mapping[str, str],
        failpoints: Mapping[str, str],
        log: Path,
        command: Sequence[str] | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        _require_proc()
        self.log = log
        self._timeout_seconds = timeout_seconds or TIMEOUT_SECONDS
        self._leg = leg
        self._mark = secrets.token_hex(8)
        self._start = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*(command or _torchrun(leg)), *_trainer(settings)],
                env={**clean(environ), **failpoints, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the launcher."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """What the launcher has ended with; ``None`` while it lives."""
        return self._process.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait(self, ending: Ending) -> Result:
        """Wait for the job's end.

        *Blocks:* at most as long as the job was given.
        *Raises:* ``BarrierTimeout`` if it does not end; it is killed then.
        """
        try:
            code = self._process.wait(self._timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BarrierTimeout(
                f"the job did not end within {self._timeout_seconds:.0f} s and was killed; see "
                f"{self.log}"
            ) from None
        until(lambda: not self.pids(), _GRACE_SECONDS)
        orphans = self.pids()
        text = self.log.read_text(errors="replace")
        return Result(
            ending=ending,
            code=code,
            worker_codes=tuple(map(int, _WORKER_CODE.findall(text))),
            seconds=time.monotonic() - self._start,
            orphans=len(orphans),
            log=self.log,
        )

    def freeze(self) -> None:
        """Wait until a rank has stopped itself, then stop the others.

        *Raises:* ``BarrierTimeout`` if none does.
        """
        has_stopped = until(
            lambda: any(map(is_stopped, self.ranks())) or self._process.poll() is not None,
            self._timeout_seconds,
        )
        if not has_stopped or self._process.poll() is not None:
            raise BarrierTimeout(f"no rank stopped at {self._leg.failpoints}; see {self.log}")
        send(SIGSTOP, self.ranks())

    def thaw(self) -> None:
        """Let stopped ranks go on."""
        send(SIGCONT, self.ranks())

    def kill(self) -> None:
        """End every process of the job, the stopped ones too."""
        # A process that was just being started shows up on a later look.
        until(lambda: not self._kill_once(), _GRACE_SECONDS)
        self._process.wait()

    def pids(self) -> list[int]:
        """The job's living processes."""
        return marked(self._mark)

    def ranks(self) -> list[int]:
        """Those of them that torchrun started as ranks, in their order."""
        return sorted(marked(self._mark, f"{_LOCAL_RANK}="), key=_local_rank)

    def _kill_once(self) -> list[int]:
        self._process.poll()  # reaps: what is dead is no longer listed
        pids = self.pids()
        send(SIGKILL, pids)
        return pids


def keepstep_run(leg: Leg, log_directory: Path, *, tries: int = 1000) -> list[str]:
    """A launcher in place of torchrun: with a watchdog, and restarts without a number."""
    return [
        *(sys.executable, "-c", KEEPSTEP, "run", "--standalone"),
        *("--nproc-per-node", str(leg.world_size)),
        *("--tries", str(tries)),
        *("--log-dir", str(log_directory)),
    ]


def _torchrun(leg: Leg) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(leg.world_size)),
        *("--max-restarts", str(leg.max_restarts)),
    ]


def _trainer(settings: Mapping[str, object]) -> list[str]:
    overrides = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["-m", "keepstep.launch", *overrides]


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Without settings and devices of the caller's, which would make it another drill."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(("KEEPSTEP_", "TORCHELASTIC_"))
    } | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _local_rank(pid: int) -> int:
    return int(entry_of(pid, _LOCAL_RANK) or 0)


def _require_proc() -> None:
    if not Path(f"/proc/{os.getpid()}/environ").exists():
        raise ConfigError("drills need Linux: they find the processes of a job in /proc")
