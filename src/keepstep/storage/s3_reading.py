"""An object of S3 that is being read by ranges."""

from contextlib import closing

from keepstep.errors import StorageUnavailable
from keepstep.storage.s3_client import S3Client

_READ_BYTES = 1 << 20
_PARTIAL_CONTENT = 206


class RangeReader:
    """Reads ranges of an object. Thread-safe.

    Args:
        name: Of the object in the bucket.
    """

    def __init__(self, client: S3Client, key: str, name: str, size_bytes: int) -> None:
        self._client = client
        self._key = key
        self._name = name
        self.size_bytes = size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; returns bytes read, fewer only at the object's end."""
        wanted = min(len(buffer), self.size_bytes - offset)
        if wanted <= 0:
            return 0
        view = buffer.cast("B")[:wanted]
        self._client.run("get_object", self._key, lambda: self._fill(offset, view))
        return wanted

    def _fill(self, offset: int, view: memoryview) -> None:
        asked = f"bytes={offset}-{offset + len(view) - 1}"
        answer = self._client.once("get_object", Key=self._name, Range=asked)
        with closing(answer["Body"]) as body:
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            # Bytes from elsewhere in the object would pass for a damaged object.
            if status != _PARTIAL_CONTENT and len(view) != self.size_bytes:
                raise StorageUnavailable(
                    f"a range was asked for and the whole object came (status {status}); is a "
                    "proxy in between that does not know ranges?",
                    key=self._key,
                )
            filled = 0
            while filled < len(view):
                data = body.read(min(_READ_BYTES, len(view) - filled))
                if not data:
                    raise StorageUnavailable(f"{filled} of {len(view)} bytes came", key=self._key)
                view[filled : filled + len(data)] = data
                filled += len(data)
