"""A connection to S3, shared by the threads of a process."""

import re
import threading
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any, TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

from keepstep._version import __version__
from keepstep.errors import StorageError, StorageUnavailable, StoreNotFound
from keepstep.observability.counters import COUNTERS
from keepstep.storage.retrying import RETRIES, Retrier, RetryPolicy
from keepstep.storage.s3_errors import CLIENT_ERRORS, code_of, is_of_old_credentials, is_passing
from keepstep.storage.s3_remedies import holds_secrets, translated, without_secrets
from keepstep.storage.s3_session import Connection, connect

CONCURRENCY = 8
"""Requests at a time that fill a link: one alone gets some 50 to 100 MB/s from a large store."""

_CONNECT_TIMEOUT_SECONDS = 5
_READ_TIMEOUT_SECONDS = 30
"""Without a single byte."""

_BEFORE_AT = re.compile(r"\S*@")

_PROMISED = {
    "create_multipart_upload": ("UploadId",),
    "head_object": ("ContentLength", "LastModified"),
    "list_multipart_uploads": ("IsTruncated",),
    "list_objects_v2": ("IsTruncated",),
    "put_object": ("ETag",),
    "upload_part": ("ETag",),
}
"""What an answer holds; where it is missing, somebody else has answered, such as a proxy."""

T = TypeVar("T")


class S3Client:
    """Requests to one bucket: signed, repeated, and with errors that say what to do.

    Settings and credentials come by the standard chain: ``AWS_*`` variables, the shared
    configuration files, the machine's role; and before these what fsspec is configured with for
    ``s3``. They are read again when the store takes the credentials no more. The client is
    botocore's, without its retries.
    """

    def __init__(self, bucket: str, uri: str, policy: RetryPolicy) -> None:
        self._bucket = bucket
        self._uri = uri
        self._retrier = Retrier(policy, is_passing=is_passing, cause=code_of)
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def request(self, operation: str, key: str, /, **parameters: Any) -> Any:
        """One operation, by its name in botocore; returns its answer.

        *Raises:* ``StorageError``, after retries if they could help.
        """
        return self.run(operation, key, lambda: self.once(operation, **parameters))

    def run(self, operation: str, key: str, act: Callable[[], T]) -> T:
        """What ``act`` returns, which calls :meth:`once`; repeated as a whole.

        *Raises:* as :meth:`request`.
        """
        try:
            return self._with_credentials_of_now(operation, act)
        except StorageError as error:
            error.key = error.key or key
            raise
        except CLIENT_ERRORS as error:
            meant = translated(error, operation, key, where=self._uri)
            raise meant from (None if holds_secrets(error) else error)

    def once(self, operation: str, **parameters: Any) -> Any:
        """One attempt. *Raises:* what botocore raises."""
        connection = self._connected()
        try:
            answer = getattr(connection.client, operation)(Bucket=self._bucket, **parameters)
        except (BotoCoreError, ClientError) as error:
            if is_of_old_credentials(error):
                self._forget(connection)
            raise
        except (RuntimeError, JSONDecodeError) as error:
            # Not of the request: the credentials' source still gives expired ones, or no JSON.
            told = f"{type(error).__name__}: {error}"
            raise CredentialRetrievalError(provider=connection.provider, error_msg=told) from error
        for name in _PROMISED.get(operation, ()):
            if name not in answer:
                raise StorageUnavailable(
                    f"{self._uri}: {operation} failed: the answer is not S3's, it has no {name}; "
                    "check the endpoint (AWS_ENDPOINT_URL) and proxies"
                )
        return answer

    def _with_credentials_of_now(self, operation: str, act: Callable[[], T]) -> T:
        """Repeated once more if the credentials are refused: they may have been replaced."""
        try:
            return self._retrier.call(operation, act)
        except CLIENT_ERRORS as error:
            if not is_of_old_credentials(error):
                raise
            COUNTERS.add(RETRIES, operation=operation, cause=code_of(error))
        return self._retrier.call(operation, act)

    def _connected(self) -> Connection:
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
            return self._connection

    def _connect(self) -> Connection:
        try:
            return connect(_config())
        except ValueError as error:
            # It repeats the endpoint, which is no URL: a password may stand anywhere before an @.
            told = _BEFORE_AT.sub("", without_secrets(str(error)))
            raise StoreNotFound(
                f"{self._uri}: {told}; write the endpoint (AWS_ENDPOINT_URL) as "
                "https://host:port, and the region (AWS_REGION) as the store names it"
            ) from (None if "@" in str(error) else error)

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            if self._connection is connection:
                self._connection = None


def _config() -> Config:
    return Config(
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        read_timeout=_READ_TIMEOUT_SECONDS,
        max_pool_connections=2 * CONCURRENCY,
        retries={"total_max_attempts": 1},
        # Bodies carry a CRC32C: hashing them once more, by SHA-256, costs what sending does.
        s3={"payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra=f"keepstep/{__version__}",
    )
