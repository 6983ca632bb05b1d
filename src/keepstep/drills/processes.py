"""Processes of a drill, wherever they are: found by a mark in the environment that they inherit."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = "DRILL_JOB"  # not KEEPSTEP_*: that would be a setting
_POLL_SECONDS = 0.05


def marked(mark: str, with_entry: str = "") -> list[int]:
    """Living processes with this mark; of those, the ones with an entry that begins so."""
    wanted, beginning = f"{MARK}={mark}".encode(), with_entry.encode()
    return [
        pid
        for pid, environ in processes()
        if wanted in environ and any(entry.startswith(beginning) for entry in environ)
    ]


def entry_of(pid: int, name: str) -> str | None:
    """A variable of a process's environment."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    beginning = f"{name}=".encode()
    return next(
        (e.removeprefix(beginning).decode() for e in entries if e.startswith(beginning)), None
    )


def processes() -> Iterator[tuple[int, list[bytes]]]:
    """Processes of this user that have an environment; a dead one that waits for its parent has
    none.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield int(entry.name), (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # gone meanwhile, or somebody else's
                continue


def is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; whether it came true."""
    deadline = time.monotonic() + seconds
    while not (is_true := condition()) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return is_true
