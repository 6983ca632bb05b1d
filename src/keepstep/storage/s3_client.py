"""A connection to S3, shared by the threads of a process."""

import threading
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import botocore.session
import fsspec.config
from botocore.config import Config
from botocore.loaders import create_loader

from keepstep._version import __version__
from keepstep.errors import StorageError, StoreNotFound
from keepstep.storage.retrying import Retrier, RetryPolicy
from keepstep.storage.s3_errors import CLIENT_ERRORS, code_of, is_passing, translated

CONCURRENCY = 8
"""Requests at a time that fill a link: one alone gets some 50 to 100 MB/s from a large store."""

_CONNECT_TIMEOUT_SECONDS = 5
_READ_TIMEOUT_SECONDS = 30
"""Without a single byte."""

T = TypeVar("T")


class S3Client:
    """Requests to one bucket: signed, repeated, and with errors that say what to do.

    Settings and credentials come by the standard chain: ``AWS_*`` variables, the shared
    configuration files, the machine's role; and before these what fsspec is configured with for
    ``s3``. The client is botocore's, without its retries.
    """

    def __init__(self, bucket: str, uri: str, policy: RetryPolicy) -> None:
        self._bucket = bucket
        self._uri = uri
        self._retrier = Retrier(policy, is_passing=is_passing, cause=code_of)
        self._client: Any = None
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
            return self._retrier.call(operation, act)
        except StorageError:
            raise
        except CLIENT_ERRORS as error:
            raise translated(error, operation, key, where=self._uri) from error

    def once(self, operation: str, **parameters: Any) -> Any:
        """One attempt. *Raises:* what botocore raises."""
        return getattr(self._connected(), operation)(Bucket=self._bucket, **parameters)

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                try:
                    self._client = _new_client()
                except ValueError as error:
                    raise StoreNotFound(
                        f"{self._uri}: {error}; write the endpoint (AWS_ENDPOINT_URL) as "
                        "https://host:port, and the region (AWS_REGION) as the store names it"
                    ) from error
            return self._client


@cache
def _descriptions() -> Any:
    """What botocore knows of AWS's services: a megabyte of JSON, parsed once per process."""
    session = botocore.session.Session()
    return create_loader(session.get_config_variable("data_path"))


def _new_client() -> Any:
    given = fsspec.config.conf.get("s3", {})
    session = botocore.session.Session(profile=given.get("profile"))
    session.register_component("data_loader", _descriptions())
    return session.create_client(
        "s3",
        endpoint_url=given.get("endpoint_url"),
        aws_access_key_id=given.get("key"),
        aws_secret_access_key=given.get("secret"),
        aws_session_token=given.get("token"),
        config=Config(
            connect_timeout=_CONNECT_TIMEOUT_SECONDS,
            read_timeout=_READ_TIMEOUT_SECONDS,
            max_pool_connections=2 * CONCURRENCY,
            retries={"total_max_attempts": 1},
            # Bodies carry a CRC32C: hashing them once more, by SHA-256, costs what sending does.
            s3={"payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            user_agent_extra=f"keepstep/{__version__}",
        ),
    )
