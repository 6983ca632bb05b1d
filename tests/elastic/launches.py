"""``keepstep run`` in forked processes, which share the parent's imported torch."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LONGEST_SECONDS = 60
LIGHT_WORKER = str(Path(__file__).with_name("light_worker.py"))


class Launch:
    """One launcher at work in a directory; its workers have the same working directory."""

    def __init__(self, directory: Path, arguments: list[str]) -> None:
        self.directory = directory
        self.log_path = directory / f"log-{time.monotonic_ns()}"
        self._code: int | None = None
        self.pid = _fork(directory, self.log_path, arguments)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def failure(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.directory / "logs/failure.json").read_text())
        return document

    @property
    def starts(self) -> int:
        """How many incarnations rank 0 has had."""
        return len(list(self.directory.glob("started-0-*")))

    def worker_pids(self) -> list[int]:
        return [int(path.read_text()) for path in self.directory.glob("started-*")]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        give_up = time.monotonic() + LONGEST_SECONDS
        while not condition():
            if time.monotonic() > give_up:
                pytest.fail(f"{what} did not come to pass:\n{self.log[-4000:]}")
            time.sleep(0.02)

    def wait_for_file(self, name: str) -> None:
        self.wait_for((self.directory / name).exists, name)

    def has_ended(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def end(self) -> int:
        """Wait for the end; the exit code."""
        self.wait_for(self.has_ended, "the end")
        assert self._code is not None
        return self._code


@contextmanager
def launch(directory: Path, *arguments: str) -> Iterator[Launch]:
    """``keepstep run --log-dir logs ARGUMENTS``, killed at the end of the block."""
    started = Launch(directory, ["--log-dir", "logs", *arguments])
    try:
        yield started
    finally:
        if not started.has_ended():
            os.kill(started.pid, signal.SIGKILL)
            os.waitpid(started.pid, 0)


def is_gone(pid: int) -> bool:
    """Whether there is no such process, or only its shell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def _fork(directory: Path, log: Path, arguments: list[str]) -> int:
    import torch.distributed.run

    from keepstep.launch import run, supervisor

    del torch, supervisor  # imported before the fork, for all forks to come
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(directory)
        with log.open("wb", buffering=0) as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        # What pytest has put in their place is not for this process.
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        code = run.run(arguments)
    finally:
        os._exit(code)  # a forked child runs none of pytest's own endings
