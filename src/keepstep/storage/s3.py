"""A prefix of an S3 bucket as a store."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

from keepstep.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageUnavailable,
)
from keepstep.storage.base import (
    Buffer,
    Capabilities,
    ObjectInfo,
    Upload,
    check_key,
    check_prefix,
)
from keepstep.storage.parts import Parts
from keepstep.storage.retrying import RetryPolicy
from keepstep.storage.s3_body import Body, checksum
from keepstep.storage.s3_client import CONCURRENCY, S3Client
from keepstep.storage.s3_upload import (
    PART_BYTES,
    WRITER,
    MultipartUpload,
    WholeUpload,
    part_bytes_of,
)

_READ_BYTES = 1 << 20
_MOST_DELETED = 1000


class S3Storage:
    """Objects of a bucket, below a prefix.

    Args:
        prefix: Empty, or without slashes at its ends.
        is_exclusive: Whether to create by ``If-None-Match``. Without, a create looks whether the
            name is free and then writes: right as long as nobody else does the same.

    *Durability:* what the store says of a request that has succeeded.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        is_exclusive: bool = True,
        policy: RetryPolicy | None = None,
    ) -> None:
        self._root = f"{prefix}/" if prefix else ""
        self._uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client = S3Client(bucket, self._uri, policy or RetryPolicy())
        self.capabilities = Capabilities(
            exclusive_create=is_exclusive,
            append=False,
            is_remote=True,
            concurrency=CONCURRENCY,
            request_bytes=PART_BYTES,
        )

    @property
    def uri(self) -> str:
        return self._uri

    def put(self, key: str, data: Buffer) -> None:
        self._put(key, data)

    def create(self, key: str, data: Buffer) -> None:
        if not self.capabilities.exclusive_create:
            self._check_free(key)
            self._put(key, data)
            return
        writer = secrets.token_hex(8)
        try:
            self._put(key, data, IfNoneMatch="*", Metadata={WRITER: writer})
        except ObjectExists:
            # Our own, if the reply to an earlier attempt was lost.
            if self._writer_of(key) != writer:
                raise

    @contextmanager
    def open_writer(self, key: str, size_bytes: int) -> Iterator[Parts]:
        part_bytes = part_bytes_of(size_bytes)
        upload = (
            WholeUpload(self, key)
            if size_bytes <= part_bytes
            else self._multipart_upload(key, size_bytes)
        )
        try:
            parts = Parts(size_bytes, part_bytes, upload.send, upload.abandon)
            yield parts
            parts.finish()
            upload.complete()
        except BaseException:
            upload.abort()
            raise

    def append(self, key: str, data: Buffer) -> None:  # noqa: ARG002  # the contract's
        raise StorageDenied("objects of this store cannot be appended to", key=key)

    def get(self, key: str) -> bytes:
        def whole() -> bytes:
            with closing(self._client.once("get_object", Key=self._name(key))["Body"]) as body:
                return bytes(body.read())

        return self._client.run("get_object", key, whole)

    @contextmanager
    def open_reader(self, key: str) -> Iterator["_Reader"]:
        answer = self._client.request("head_object", key, Key=self._name(key))
        yield _Reader(self._client, key, self._name(key), int(answer["ContentLength"]))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        start = self._root + check_prefix(prefix)
        pages = self._pages("list_objects_v2", prefix, ("ContinuationToken",), Prefix=start)
        found = [one for page in pages for one in page.get("Contents", ())]
        for one in sorted(found, key=lambda one: str(one["Key"])):
            if not one["Key"].endswith("/"):  # some stores list what they call directories
                yield ObjectInfo(one["Key"].removeprefix(self._root), int(one["Size"]))

    def delete(self, keys: Iterable[str]) -> None:
        names = [self._name(key) for key in keys]
        for begin in range(0, len(names), _MOST_DELETED):
            self._delete(names[begin : begin + _MOST_DELETED])

    def server_time(self, key: str) -> datetime:
        """When the store says it wrote an object, to the second."""
        answer = self._client.request("head_object", key, Key=self._name(key))
        written: datetime = answer["LastModified"]
        return written

    def uploads(self, prefix: str) -> tuple[Upload, ...]:
        """Multipart uploads that were begun below ``prefix`` and not ended."""
        start = self._root + check_prefix(prefix)
        markers = ("KeyMarker", "UploadIdMarker")
        pages = self._pages("list_multipart_uploads", prefix, markers, Prefix=start)
        return tuple(
            Upload(one["Key"].removeprefix(self._root), one["UploadId"], one["Initiated"])
            for page in pages
            for one in page.get("Uploads", ())
        )

    def abort_upload(self, upload: Upload) -> None:
        """Let go of what was uploaded. One that has ended is no error."""
        try:
            self._client.request(
                "abort_multipart_upload",
                upload.key,
                Key=self._name(upload.key),
                UploadId=upload.id,
            )
        except ObjectNotFound:
            return

    def _multipart_upload(self, key: str, size_bytes: int) -> MultipartUpload:
        is_exclusive = self.capabilities.exclusive_create
        if not is_exclusive:
            self._check_free(key)
        name = self._name(key)
        return MultipartUpload(self._client, key, name, size_bytes, is_exclusive=is_exclusive)

    def _put(self, key: str, data: Buffer, **conditions: Any) -> None:
        view = memoryview(data).cast("B")
        self._client.run(
            "put_object",
            key,
            lambda: self._client.once(
                "put_object",
                Key=self._name(key),
                Body=Body(view),
                ChecksumCRC32C=checksum(view),
                **conditions,
            ),
        )

    def _check_free(self, key: str) -> None:
        try:
            self._client.request("head_object", key, Key=self._name(key))
        except ObjectNotFound:
            return
        raise ObjectExists("the name is taken", key=key)

    def _writer_of(self, key: str) -> str | None:
        answer = self._client.request("head_object", key, Key=self._name(key))
        writer: str | None = answer.get("Metadata", {}).get(WRITER)
        return writer

    def _delete(self, names: Sequence[str]) -> None:
        objects = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        answer = self._client.request("delete_objects", names[0], Delete=objects)
        for error in answer.get("Errors", ()):
            key = error["Key"].removeprefix(self._root)
            message = f"{error.get('Code')}: {error.get('Message')}"
            if error.get("Code") == "AccessDenied":
                raise StorageDenied(
                    f"{self._uri}: permission refused: grant s3:DeleteObject there", key=key
                )
            raise StorageUnavailable(f"{self._uri}: delete failed: {message}", key=key)

    def _pages(
        self, operation: str, key: str, markers: tuple[str, ...], **parameters: Any
    ) -> Iterator[dict[str, Any]]:
        more: dict[str, Any] = {}
        while True:
            page = self._client.request(operation, key, **parameters, **more)
            yield page
            if not page.get("IsTruncated"):
                return
            more = {marker: page[f"Next{marker}"] for marker in markers}

    def _name(self, key: str) -> str:
        return self._root + check_key(key)


class _Reader:
    def __init__(self, client: S3Client, key: str, name: str, size_bytes: int) -> None:
        self._client = client
        self._key = key
        self._name = name
        self.size_bytes = size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> int:
        wanted = min(len(buffer), self.size_bytes - offset)
        if wanted <= 0:
            return 0
        view = buffer.cast("B")[:wanted]
        self._client.run("get_object", self._key, lambda: self._fill(offset, view))
        return wanted

    def _fill(self, offset: int, view: memoryview) -> None:
        asked = f"bytes={offset}-{offset + len(view) - 1}"
        answer = self._client.once("get_object", Key=self._name, Range=asked)
        filled = 0
        with closing(answer["Body"]) as body:
            while filled < len(view):
                data = body.read(min(_READ_BYTES, len(view) - filled))
                if not data:
                    raise StorageUnavailable(f"{filled} of {len(view)} bytes came", key=self._key)
                view[filled : filled + len(data)] = data
                filled += len(data)
