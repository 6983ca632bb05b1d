"""A prefix of an S3 bucket as a store."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import datetime
from typing import Any, NoReturn

from botocore.exceptions import ClientError

from keepstep.errors import ObjectExists, ObjectNotFound, StorageDenied, StorageError
from keepstep.storage.base import (
    Buffer,
    Capabilities,
    ObjectInfo,
    Upload,
    check_key,
    check_prefix,
)
from keepstep.storage.doubt import Doubt
from keepstep.storage.parts import Parts
from keepstep.storage.retrying import RetryPolicy
from keepstep.storage.s3_body import Body, checksum
from keepstep.storage.s3_client import CONCURRENCY, S3Client
from keepstep.storage.s3_errors import is_passing, may_have_landed
from keepstep.storage.s3_reading import RangeReader
from keepstep.storage.s3_remedies import translated
from keepstep.storage.s3_upload import (
    PART_BYTES,
    WRITER,
    Leftovers,
    MultipartUpload,
    WholeUpload,
    part_bytes_of,
)

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
        self._leftovers = Leftovers(self._client)
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
        self._put(key, data, nullcontext)

    def create(self, key: str, data: Buffer) -> None:
        writer, doubt = secrets.token_hex(8), Doubt(may_have_landed)
        conditions: dict[str, Any] = {}
        if self.capabilities.exclusive_create:
            conditions = {"IfNoneMatch": "*", "Metadata": {WRITER: writer}}
        else:
            self._check_free(key)
        try:
            with doubt.told(key):
                self._put(key, data, doubt.noted, **conditions)
        except ObjectExists:
            # By ourselves, if the reply to an earlier attempt was lost.
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

    def open_appender(self, key: str) -> NoReturn:
        raise StorageDenied("objects of this store cannot be appended to", key=key)

    def get(self, key: str) -> bytes:
        def whole() -> bytes:
            with closing(self._client.once("get_object", Key=self._name(key))["Body"]) as body:
                return bytes(body.read())

        return self._client.run("get_object", key, whole)

    @contextmanager
    def open_reader(self, key: str) -> Iterator[RangeReader]:
        answer = self._client.request("head_object", key, Key=self._name(key))
        yield RangeReader(self._client, key, self._name(key), int(answer["ContentLength"]))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        start = self._root + check_prefix(prefix)
        pages = self._pages("list_objects_v2", prefix, ("ContinuationToken",), Prefix=start)
        found = [one for page in pages for one in page.get("Contents", ())]
        for one in sorted(found, key=lambda one: str(one["Key"])):
            if not one["Key"].endswith("/"):  # some stores list what they call directories
                yield ObjectInfo(one["Key"].removeprefix(self._root), int(one["Size"]))

    def delete(self, keys: Iterable[str]) -> None:
        doomed = [check_key(key) for key in keys]
        for begin in range(0, len(doomed), _MOST_DELETED):
            self._delete(doomed[begin : begin + _MOST_DELETED])

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
        return MultipartUpload(
            self._client,
            key,
            self._name(key),
            size_bytes,
            is_exclusive=is_exclusive,
            leftovers=self._leftovers,
        )

    def _put(
        self,
        key: str,
        data: Buffer,
        attempt: Callable[[], AbstractContextManager[None]],
        **conditions: Any,
    ) -> None:
        view = memoryview(data).cast("B")
        crc32c = checksum(view)

        def put() -> None:
            with attempt():
                self._client.once(
                    "put_object",
                    Key=self._name(key),
                    Body=Body(view),
                    ChecksumCRC32C=crc32c,
                    **conditions,
                )

        self._client.run("put_object", key, put)

    def _check_free(self, key: str) -> None:
        try:
            self._client.request("head_object", key, Key=self._name(key))
        except ObjectNotFound:
            return
        raise ObjectExists("the name is taken", key=key)

    def _writer_of(self, key: str) -> str | None:
        """Who created an object. *Raises:* ``ObjectExists`` if the store does not say."""
        try:
            answer = self._client.request("head_object", key, Key=self._name(key))
        except StorageError as error:
            raise ObjectExists(
                f"the name is taken; by whom is not known: {error}", key=key
            ) from error
        writer: str | None = answer.get("Metadata", {}).get(WRITER)
        return writer

    def _delete(self, keys: Sequence[str]) -> None:
        objects = {"Objects": [{"Key": self._name(key)} for key in keys], "Quiet": True}

        def delete() -> dict[str, ClientError]:
            """Why objects are still there, by key."""
            answer = self._client.once("delete_objects", Delete=objects)
            errors = {
                error["Key"].removeprefix(self._root): ClientError(
                    {"Error": error}, "DeleteObjects"
                )
                for error in answer.get("Errors", ())
                if error.get("Code") != "NoSuchKey"
            }
            for key, error in errors.items():
                if is_passing(error):
                    raise translated(error, "delete_objects", key, where=self._uri)
            return errors

        for key, error in self._client.run("delete_objects", keys[0], delete).items():
            raise translated(error, "delete_objects", key, where=self._uri)

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
