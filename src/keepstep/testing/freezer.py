"""Whole nodes that stand still: the freezer of a control group, as virtual machines are paused.

Neither frozen processes nor their parents notice. Signals take effect when they are thawed; with
control groups of version 1 so does SIGKILL. Needs root.
"""

import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/freezer")
_V2 = Path("/sys/fs/cgroup")
_LONGEST_SECONDS = 10.0


class Freezer:
    """A control group for processes that are frozen and thawed together; close it in the end."""

    def __init__(self) -> None:
        self._is_v1 = (_V1 / "cgroup.procs").exists()
        self.path = (_V1 if self._is_v1 else _V2) / f"keepstep-{uuid.uuid4().hex[:8]}"
        self.path.mkdir()

    def freeze(self, pids: Iterable[int]) -> None:
        """Until they are thawed. Processes that are gone are passed over.

        *Blocks:* until all stand still.
        *Raises:* ``TimeoutError`` if they do not.
        """
        for pid in pids:
            try:
                (self.path / "cgroup.procs").write_text(str(pid))
            except ProcessLookupError:
                continue
        self._set(is_frozen=True)

    def thaw(self) -> None:
        """Let them go on; does nothing if they are."""
        self._set(is_frozen=False)

    def close(self) -> None:
        """Thaw, and remove the group; what still lives in it goes to the root group."""
        self.thaw()
        parent = self.path.parent / "cgroup.procs"
        for pid in (self.path / "cgroup.procs").read_text().split():
            try:
                parent.write_text(pid)
            except ProcessLookupError:
                continue
        self.path.rmdir()

    def _set(self, *, is_frozen: bool) -> None:
        if self._is_v1:
            wanted = "FROZEN" if is_frozen else "THAWED"
            order, state = self.path / "freezer.state", self.path / "freezer.state"
            order.write_text(wanted)
        else:
            wanted = f"frozen {int(is_frozen)}"
            order, state = self.path / "cgroup.freeze", self.path / "cgroup.events"
            order.write_text(str(int(is_frozen)))
        give_up = time.monotonic() + _LONGEST_SECONDS
        while wanted not in state.read_text():
            if time.monotonic() > give_up:
                raise TimeoutError(f"{order} was not obeyed: {state.read_text().strip()}")
            time.sleep(0.01)


def can_freeze() -> bool:
    """Whether this user may freeze processes here; tried, not guessed."""
    if os.geteuid() != 0:
        return False
    try:
        freezer = Freezer()
    except OSError:
        return False
    try:
        freezer.freeze(())
    except (OSError, TimeoutError):
        return False
    finally:
        freezer.close()
    return True
