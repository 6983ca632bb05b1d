"""One object on its way to S3: in parts, or as a whole."""

import secrets
import threading
from collections import deque
from typing import Any, Protocol

from keepstep.errors import ObjectExists, ObjectNotFound, StorageError, StorageUnavailable
from keepstep.storage.base import Buffer
from keepstep.storage.s3_body import Body, checksum, checksum_of_parts, is_of_parts
from keepstep.storage.s3_client import S3Client
from keepstep.storage.s3_errors import status_of

PART_BYTES = 8 << 20
_MOST_PARTS = 10_000
_NOT_FOUND = 404

WRITER = "keepstep-writer"
"""Metadata of an object: tells whose it is when the reply to its creation was lost."""


class Creates(Protocol):
    """What a whole upload needs of the store."""

    def create(self, key: str, data: Buffer) -> None: ...

    def delete(self, keys: list[str]) -> None: ...


def part_bytes_of(size_bytes: int) -> int:
    """The size of an object's parts: :data:`PART_BYTES`, or a multiple if there were too many."""
    return PART_BYTES * max(1, -(-size_bytes // (PART_BYTES * _MOST_PARTS)))


class WholeUpload:
    """An object of a single part."""

    def __init__(self, storage: Creates, key: str) -> None:
        self._storage = storage
        self._key = key
        self._is_created = False

    def send(self, number: int, data: memoryview) -> None:  # noqa: ARG002  # always the first
        """Create the object."""
        self._storage.create(self._key, data)
        self._is_created = True

    def abandon(self) -> None:
        """Nothing: what is sent is small."""

    def complete(self) -> None:
        """Nothing is left to do."""

    def abort(self) -> None:
        """Remove the object, if it is ours and the store answers."""
        if self._is_created:
            try:
                self._storage.delete([self._key])
            except StorageError:
                return


class Leftovers:
    """Uploads that were to be let go and are still there, since the store did not answer.

    Each is tried again when the next upload has begun, so that a job that goes on for weeks leaves
    nothing. Thread-safe.
    """

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._left: deque[tuple[str, str]] = deque()

    def let_go(self, name: str, id: str) -> bool:
        """Let go of an upload, or remember it; whether it is gone. One attempt, no error."""
        try:
            self._client.once("abort_multipart_upload", Key=name, UploadId=id)
        except Exception as error:  # noqa: BLE001  # what led here is raised, and matters more
            if status_of(error) != _NOT_FOUND:
                self._left.append((name, id))
                return False
        return True

    def sweep(self) -> None:
        """Try again, up to the first that does not go."""
        while self._left:
            try:
                name, id = self._left.popleft()
            except IndexError:  # another thread was faster
                return
            if not self.let_go(name, id):
                return


class MultipartUpload:
    """An object whose parts are sent in any order, several at a time. Begun at once.

    Args:
        name: Of the object in the bucket.
    """

    def __init__(
        self,
        client: S3Client,
        key: str,
        name: str,
        size_bytes: int,
        *,
        is_exclusive: bool,
        leftovers: Leftovers,
    ) -> None:
        self._client = client
        self._key = key
        self._name = name
        self._size_bytes = size_bytes
        self._is_exclusive = is_exclusive
        self._leftovers = leftovers
        self._writer = secrets.token_hex(8)
        self._parts: dict[int, dict[str, Any]] = {}
        self._is_completed = False
        self._is_abandoned = threading.Event()
        self._lock = threading.Lock()
        answer = client.request(
            "create_multipart_upload",
            key,
            Key=name,
            ChecksumAlgorithm="CRC32C",
            Metadata={WRITER: self._writer},
        )
        self._id = answer["UploadId"]
        leftovers.sweep()

    def send(self, number: int, data: memoryview) -> None:
        """Upload a part, numbered from 0. Thread-safe."""
        sent = checksum(data)

        def upload() -> dict[str, Any]:
            self._check_wanted()
            answer: dict[str, Any] = self._client.once(
                "upload_part",
                Key=self._name,
                UploadId=self._id,
                PartNumber=number + 1,
                Body=Body(data, self._check_wanted),
                ChecksumCRC32C=sent,
            )
            if answer.get("ChecksumCRC32C", sent) != sent:
                raise StorageUnavailable(f"part {number + 1} arrived damaged", key=self._key)
            return answer

        answer = self._client.run("upload_part", self._key, upload)
        with self._lock:
            self._parts[number] = {
                "PartNumber": number + 1,
                "ETag": answer["ETag"],
                "ChecksumCRC32C": sent,
            }

    def abandon(self) -> None:
        """Let parts that are being sent fail."""
        self._is_abandoned.set()

    def complete(self) -> None:
        """Make the object of its parts. *Raises:* ``ObjectExists`` if the name is taken."""
        parts = [self._parts[number] for number in sorted(self._parts)]
        condition = {"IfNoneMatch": "*"} if self._is_exclusive else {}
        conflict: StorageError | None = None
        try:
            answer = self._client.request(
                "complete_multipart_upload",
                self._key,
                Key=self._name,
                UploadId=self._id,
                MultipartUpload={"Parts": parts},
                **condition,
            )
        except (ObjectNotFound, ObjectExists) as error:
            # If the reply to an earlier attempt was lost, the upload is gone and the object ours.
            conflict = error
        else:
            self._is_completed = True
            expected = checksum_of_parts([part["ChecksumCRC32C"] for part in parts])
            if is_of_parts(answer) and answer["ChecksumCRC32C"] != expected:
                raise StorageUnavailable("the object is not what was sent", key=self._key)
        self._check(conflict)

    def abort(self) -> None:
        """Let go of the parts, or of the object, if the store answers at once.

        An object is removed only if it is known to be ours. A completion in doubt is met by the
        abort: either the parts go, or the object stays, to which nothing refers. Parts that stay
        are let go when the next upload has begun, or swept at the next start.
        """
        if not self._is_completed:
            self._leftovers.let_go(self._name, self._id)
            return
        try:
            self._client.once("delete_object", Key=self._name)
        except Exception:  # noqa: BLE001  # what led here is raised, and it matters more
            return

    def _check_wanted(self) -> None:
        if self._is_abandoned.is_set():
            raise StorageError("the upload was given up", key=self._key)

    def _check(self, conflict: StorageError | None) -> None:
        """Look at what is there now; a conflict is none if it is ours."""
        try:
            found = self._client.request("head_object", self._key, Key=self._name)
        except ObjectNotFound:
            raise StorageUnavailable("the upload is gone", key=self._key) from conflict
        if conflict is not None and found.get("Metadata", {}).get(WRITER) != self._writer:
            raise conflict
        self._is_completed = True
        if int(found["ContentLength"]) != self._size_bytes:
            raise StorageUnavailable(
                f"{found['ContentLength']} of {self._size_bytes} bytes are there", key=self._key
            )
