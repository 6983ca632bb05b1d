"""The body of an upload, sent from where it is."""

import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping

from awscrt.checksums import crc32c


def checksum(data: memoryview) -> str:
    """CRC32C as S3 writes it: big-endian, in base64."""
    return b64encode(struct.pack(">I", crc32c(data))).decode()


def checksum_of_parts(checksums: list[str]) -> str:
    """What S3 says of an object whose parts have these checksums."""
    joined = b"".join(map(b64decode, checksums))
    return f"{checksum(memoryview(joined))}-{len(checksums)}"


def is_of_parts(answer: Mapping[str, str]) -> bool:
    """Whether an answer's checksum is one of the parts' checksums. Some stores give that of the
    object's bytes instead, or none.
    """
    return "-" in answer.get("ChecksumCRC32C", "")  # which base64 does not use


class Body:
    """A file over memory, as HTTP clients read it: without a copy of the whole.

    Args:
        before_read: Called before every read; what it raises ends the request.
    """

    def __init__(self, data: memoryview, before_read: Callable[[], None] = lambda: None) -> None:
        self._data = data
        self._before_read = before_read
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int = -1) -> memoryview:
        self._before_read()
        stop = len(self._data) if size < 0 else self._position + size
        found = self._data[self._position : stop]
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, len(self._data))[whence]
        return self._position

    def tell(self) -> int:
        return self._position
