"""Where the time goes: seconds by what a process is doing."""

import threading
import time


class SectionClock:
    """One thread says what it does; any thread may ask. What it said last is still running.

    Args:
        section: What it does until it says something.
    """

    def __init__(self, section: str = "start") -> None:
        self._section = section
        self._since_ns = self._asked_ns = time.monotonic_ns()
        self._spent_ns: dict[str, int] = {}
        # Nobody may see the end of one section before the beginning of the next.
        self._lock = threading.Lock()

    def enter(self, section: str, now_ns: int) -> None:
        """From ``now_ns`` on the monotonic clock on, it does that; nothing, if it has no name."""
        with self._lock:
            now_ns = max(now_ns, self._asked_ns)  # what was said up to then was told already
            spent = self._spent_ns
            spent[self._section] = spent.get(self._section, 0) + now_ns - self._since_ns
            self._section = section
            self._since_ns = now_ns

    def spent_ns(self) -> dict[str, int]:
        """Nanoseconds by section, up to now. No number is ever smaller than it was before."""
        with self._lock:
            spent = dict(self._spent_ns)
            self._asked_ns = max(time.monotonic_ns(), self._since_ns)
            running = self._asked_ns - self._since_ns
            spent[self._section] = spent.get(self._section, 0) + running
        spent.pop("", None)
        return spent
