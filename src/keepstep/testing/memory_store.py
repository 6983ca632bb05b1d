"""A barrier's store for ranks that are threads of one process."""

import threading


class MemoryStore:
    """Keeps the contract of :class:`~keepstep.commit.barrier.Store`; share one among all ranks."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def wait(self, key: str, timeout_seconds: float) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: key in self._values, timeout_seconds)
            return self._values.get(key)

    def delete(self, key: str) -> None:
        with self._changed:
            self._values.pop(key, None)

    def keys(self) -> list[str]:
        """What is in the store."""
        with self._changed:
            return sorted(self._values)
