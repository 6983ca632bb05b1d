"""What an S3 client's errors mean: worth another attempt, or a sentence with the remedy."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from urllib3.exceptions import HTTPError

from keepstep.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    StoreNotFound,
)

_PASSING_CODES = {
    "429",
    "BadDigest",  # damaged on the way: to be sent again
    "ConditionalRequestConflict",  # another create of this name is under way
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
}
_PASSING_ERRORS = (
    NoConnectionError,
    ConnectionClosedError,
    HTTPClientError,
    HTTPError,  # urllib3's own, while a body is read
    IncompleteReadError,
    ResponseStreamingError,
    OSError,
)
_LASTING_ERRORS = (SSLError,)

CLIENT_ERRORS = (BotoCoreError, ClientError, HTTPError, OSError)
"""Everything a request can raise that is not a bug."""

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}
_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"}

_PERMISSIONS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "list_objects_v2": "s3:ListBucket",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "delete_objects": "s3:DeleteObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
}


def code_of(error: Exception) -> str:
    """The store's own code, or the kind of error."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code") or _status(error))
    return type(error).__name__


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, ClientError):
        return code_of(error) in _PASSING_CODES or (_status(error) >= 500 and not _is_final(error))
    if isinstance(error, StorageError):
        return isinstance(error, StorageUnavailable)
    return isinstance(error, _PASSING_ERRORS) and not isinstance(error, _LASTING_ERRORS)


def translated(error: Exception, operation: str, key: str, *, where: str) -> StorageError:
    """The storage error that says what a person or a caller can do about it.

    Args:
        where: The store, as a person would write it.
    """
    if isinstance(error, StorageError):
        return error
    code = code_of(error)
    if (sentence := _DENIED.get(code)) is not None:
        return StorageDenied(f"{where}: {sentence} ({code})", key=key)
    if code in _EXPIRED:
        return StorageDenied(f"{where}: {_EXPIRED_REMEDY} ({code})", key=key)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageDenied(f"{where}: {_NO_CREDENTIALS}", key=key)
    if isinstance(error, ProfileNotFound):
        return StorageDenied(f"{where}: {error}; correct AWS_PROFILE", key=key)
    if code == "NoSuchBucket":
        return StoreNotFound(
            f"{where}: there is no such bucket; create it, or correct the URI or the endpoint "
            "(AWS_ENDPOINT_URL)",
            key=key,
        )
    if code in _WRONG_REGION:
        return StoreNotFound(
            f"{where}: the bucket is in another region; set AWS_REGION to it ({code})", key=key
        )
    if code == "InvalidBucketName" or isinstance(error, ParamValidationError):
        return StoreNotFound(f"{where}: not a name of a bucket or object: {error}", key=key)
    return _by_status(error, code, operation, key, where)


def _by_status(error: Exception, code: str, operation: str, key: str, where: str) -> StorageError:
    status = _status(error)
    if code in _FULL:
        return StorageFull(f"{where}: no space left ({code})", key=key)
    if code in ("NoSuchKey", "NoSuchUpload") or status == 404:
        return ObjectNotFound("no such object", key=key)
    if code == "PreconditionFailed" or status == 412:
        return ObjectExists("the name is taken", key=key)
    if status in (401, 403):
        permission = _PERMISSIONS.get(operation, "s3:PutObject")
        return StorageDenied(
            f"{where}: permission refused ({code}): grant {permission} there to these credentials",
            key=key,
        )
    told = _told(error)
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        told += "; check the network and the endpoint (AWS_ENDPOINT_URL)"
    return StorageUnavailable(f"{where}: {operation} failed: {told}", key=key)


_DENIED = {
    "InvalidAccessKeyId": (
        "the store does not know the access key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "AWS_PROFILE, or give the machine a role"
    ),
    "SignatureDoesNotMatch": (
        "the secret key is not that of the access key; correct AWS_SECRET_ACCESS_KEY or the profile"
    ),
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it, for instance by NTP",
    "AccountProblem": "the account is blocked; ask its owner",
}
_EXPIRED_REMEDY = (
    "the session token has expired or is not valid; fetch new credentials and start again"
)
_NO_CREDENTIALS = (
    "no complete credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_PROFILE, or give the machine a role"
)


def _is_final(error: ClientError) -> bool:
    return code_of(error) in _FULL or _status(error) == 501


def _status(error: Exception) -> int:
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _told(error: Exception) -> str:
    """One line. Requests are signed in headers: nothing in these messages is a secret."""
    if isinstance(error, ClientError):
        said = error.response.get("Error", {}).get("Message", "")
        return " ".join(f"{code_of(error)}: {said}".split())
    if isinstance(error, BotoCoreError):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
