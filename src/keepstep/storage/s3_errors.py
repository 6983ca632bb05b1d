"""What an S3 client's errors mean for the request: worth another attempt or not."""

from ssl import SSLCertVerificationError

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from urllib3.exceptions import HTTPError

from keepstep.errors import StorageError, StorageUnavailable

CLIENT_ERRORS = (BotoCoreError, ClientError, HTTPError, OSError)
"""Everything a request can raise that is not a bug."""

PROVIDER_ERRORS = (CredentialRetrievalError, MetadataRetrievalError, TokenRetrievalError)
"""The source of the credentials failed; the store was not asked."""

EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
UNKNOWN_KEY_CODES = {"InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"}
WRONG_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}
FULL_CODES = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"}
REFUSED_CODES = {"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "AccountProblem"}

_PASSING_CODES = {
    "429",
    "BadDigest",  # damaged on the way: to be sent again
    "ConditionalRequestConflict",  # another create of this name is under way
    "IDPCommunicationError",  # of the security token service
    "IncompleteBody",
    "InternalError",
    "KMS.ThrottlingException",
    "OperationAborted",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
}
_LASTING_CODES = {  # whatever the status: botocore makes 500 of an error that comes in a 200
    *EXPIRED_CODES,
    *UNKNOWN_KEY_CODES,
    *WRONG_REGION_CODES,
    *FULL_CODES,
    *REFUSED_CODES,
    "EntityTooLarge",
    "EntityTooSmall",
    "InvalidArgument",
    "InvalidBucketName",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidRequest",
    "KeyTooLongError",
    "MalformedXML",
    "MethodNotAllowed",
    "NoSuchBucket",
    "NoSuchKey",
    "NoSuchUpload",
    "NotImplemented",
    "PreconditionFailed",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
_LASTING_STATUSES = {501, 507}

_PASSING_ERRORS = (
    *PROVIDER_ERRORS,
    NoConnectionError,
    ConnectionClosedError,
    HTTPClientError,
    HTTPError,  # urllib3's own, while a body is read
    IncompleteReadError,
    ResponseStreamingError,
    OSError,
)
_WRONG_HOST = "CertificateError"
"""urllib3's, of a certificate for another host; where it is defined differs by version."""
_UNSENT_ERRORS = (*PROVIDER_ERRORS, EndpointConnectionError, ConnectTimeoutError)


def code_of(error: Exception) -> str:
    """The store's own code, or the kind of error."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code") or status_of(error))
    return type(error).__name__


def status_of(error: Exception) -> int:
    """Of the HTTP answer; 0 where there was none."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, ClientError):
        return _is_passing_answer(code_of(error), status_of(error))
    if isinstance(error, StorageError):
        return isinstance(error, StorageUnavailable)
    return isinstance(error, _PASSING_ERRORS) and not is_untrusted(error)


def may_have_landed(error: Exception) -> bool:
    """Whether the store may carry the request out, now or later, although it failed."""
    return is_passing(error) and not isinstance(error, _UNSENT_ERRORS)


def is_of_old_credentials(error: Exception) -> bool:
    """Whether credentials that are read anew may be better ones."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return True
    return code_of(error) in EXPIRED_CODES | UNKNOWN_KEY_CODES


def is_untrusted(error: Exception) -> bool:
    """Whether the server's certificate was refused. All else that TLS reports is a broken
    connection.
    """
    # botocore's error holds urllib3's, and that one ssl's.
    inner = error.kwargs.get("error") if isinstance(error, BotoCoreError) else None
    while isinstance(inner, Exception):
        if isinstance(inner, SSLCertVerificationError) or type(inner).__name__ == _WRONG_HOST:
            return True
        inner = next((one for one in inner.args if isinstance(one, Exception)), None)
    return False


def _is_passing_answer(code: str, status: int) -> bool:
    if code in _PASSING_CODES:
        return True
    return status >= 500 and status not in _LASTING_STATUSES and code not in _LASTING_CODES
