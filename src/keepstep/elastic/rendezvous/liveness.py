"""Who has fallen silent: by what was seen here, timed by the clock here."""

from collections.abc import Mapping
from dataclasses import dataclass

_LOOKS = 4
"""A node is silent only if so many looks found its heartbeat unchanged: time alone could have
passed while this process, and not the other, was stopped."""


@dataclass(slots=True)
class _Pulse:
    count: int
    seen_at: float
    looks: int = 0


class Liveness:
    """Watches counters that live nodes keep raising.

    No node's wall clock is compared with another's: a node whose clock is wrong is as alive as
    any other.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._pulses: dict[str, _Pulse] = {}
        self._pardoned_until = float("-inf")

    def look(self, counts: Mapping[str, int], now: float) -> frozenset[str]:
        """Take note of the counters of all nodes; which of the nodes are silent."""
        self._pulses = {
            node: self._next_pulse(self._pulses.get(node), count, now)
            for node, count in counts.items()
        }
        return frozenset(
            node for node, pulse in self._pulses.items() if self._is_silent(pulse, now)
        )

    def pardon(self, until: float) -> None:
        """Count no silence before ``until``: the counters could not be raised or read."""
        self._pardoned_until = until

    def _next_pulse(self, pulse: _Pulse | None, count: int, now: float) -> _Pulse:
        if pulse is None or pulse.count != count:
            return _Pulse(count, now)
        pulse.looks += 1
        return pulse

    def _is_silent(self, pulse: _Pulse, now: float) -> bool:
        since = max(pulse.seen_at, self._pardoned_until)
        return pulse.looks >= _LOOKS and now - since >= self._timeout_seconds
