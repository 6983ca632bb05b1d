"""The process group's store, as the barrier knows it."""

from keepstep.errors import CoordinationError
from keepstep.testing.simulation.actors import Scheduler
from keepstep.testing.simulation.storage import Fate


class SimulatedStore:
    """Keeps the contract of :class:`~keepstep.commit.barrier.Store`.

    It outlives the ranks, as that of a launcher does: what a dead attempt has posted stays.
    """

    def __init__(self, scheduler: Scheduler, fate: Fate) -> None:
        self._scheduler = scheduler
        self._fate = fate
        self._values: dict[str, bytes] = {}
        self.is_gone = False

    def set(self, key: str, value: bytes) -> None:
        self._reach("set", key)
        self._values[key] = value
        self._scheduler.notify(key)

    def wait(self, key: str, timeout_seconds: float) -> bytes | None:
        self._reach("wait", key)
        if key not in self._values and timeout_seconds > 0:
            self._scheduler.wait(key, timeout_seconds)
            self._reach("woken", key)
        return self._values.get(key)

    def delete(self, key: str) -> None:
        self._reach("unset", key)
        self._values.pop(key, None)

    def _reach(self, operation: str, key: str) -> None:
        self._fate.pass_by(operation, key)
        if self.is_gone:
            raise CoordinationError("the process group's store is gone")
