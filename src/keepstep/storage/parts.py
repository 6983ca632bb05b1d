"""From pieces written in any order to parts of one size, as stores want them."""

import threading
from collections.abc import Callable, Iterator

from keepstep.errors import InternalError
from keepstep.storage.base import Buffer

Send = Callable[[int, memoryview], None]
"""Takes a part's number, from 0, and its bytes; they may be reused once it returns."""


class Parts:
    """Cuts an object of ``size_bytes`` into parts of ``part_bytes``; the last may be shorter.

    A piece that covers whole parts is sent from where it is. Others wait in a buffer until their
    part is complete: at most as many parts as are begun and not complete. Thread-safe; whoever
    completes a part sends it.

    Args:
        abandon: Lets what is being sent fail soon.
    """

    def __init__(
        self,
        size_bytes: int,
        part_bytes: int,
        send: Send,
        abandon: Callable[[], None] = lambda: None,
    ) -> None:
        self.abandon = abandon
        self.count = max(1, -(-size_bytes // part_bytes))
        self._size_bytes = size_bytes
        self._part_bytes = part_bytes
        self._send = send
        self._begun: dict[int, _Part] = {}
        self._written_bytes = 0
        self._lock = threading.Lock()

    def write(self, offset: int, data: Buffer) -> None:
        """Take ``data`` at ``offset`` bytes. *Blocks:* while a part is sent that it completes."""
        view = memoryview(data).cast("B")
        if offset + len(view) > self._size_bytes:
            raise InternalError(f"byte {offset + len(view)} of {self._size_bytes} was written")
        for number, start, stop in self._cut(offset, offset + len(view)):
            self._take(number, start, view[start - offset : stop - offset])
        with self._lock:
            self._written_bytes += len(view)

    def finish(self) -> None:
        """*Raises:* ``InternalError`` unless every byte was written."""
        if self._written_bytes != self._size_bytes:
            raise InternalError(f"{self._written_bytes} of {self._size_bytes} bytes were written")
        if self._size_bytes == 0:
            self._send(0, memoryview(b""))

    def _cut(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        while start < stop:
            number = start // self._part_bytes
            end = min(stop, (number + 1) * self._part_bytes)
            yield number, start, end
            start = end

    def _take(self, number: int, start: int, view: memoryview) -> None:
        begins = number * self._part_bytes
        size_bytes = min(self._part_bytes, self._size_bytes - begins)
        if len(view) == size_bytes:
            self._send(number, view)
            return
        with self._lock:
            part = self._begun.get(number)
            if part is None:
                part = self._begun[number] = _Part(size_bytes)
        part.data[start - begins : start - begins + len(view)] = view
        with self._lock:
            part.missing_bytes -= len(view)
            is_complete = part.missing_bytes == 0
            if is_complete:
                del self._begun[number]
        if is_complete:
            self._send(number, memoryview(part.data))


class _Part:
    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)
        self.missing_bytes = size_bytes
