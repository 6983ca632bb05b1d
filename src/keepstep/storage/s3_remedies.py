"""What an S3 client's errors mean for people: a sentence with the remedy, and no secrets."""

import re

from botocore import xform_name
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    EndpointProviderError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    UnauthorizedSSOTokenError,
)

from keepstep.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    StoreNotFound,
)
from keepstep.storage.s3_errors import (
    EXPIRED_CODES,
    FULL_CODES,
    PROVIDER_ERRORS,
    REFUSED_CODES,
    UNKNOWN_KEY_CODES,
    WRONG_REGION_CODES,
    code_of,
    is_passing,
    is_untrusted,
    status_of,
)

Meaning = tuple[type[StorageError], str]

_USER_INFO = re.compile(r"//(\S*|[^/]*)@")
_ACTION = re.compile(r"\b[a-z0-9-]+:[A-Z][A-Za-z]+\b")
_PROCESS = "custom-process"
_SERVICES = ("container-role", "iam-role", "the machine's metadata service")
"""Sources that run beside a job; on a new machine they may start later than it."""

_READING = "s3:GetObject and s3:ListBucket"
"""Without the second, what is absent is refused instead."""
_PERMISSIONS = {
    "get_object": _READING,
    "head_object": _READING,
    "list_objects_v2": "s3:ListBucket",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
}
_SET_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"
)
_MEANINGS: dict[str, Meaning] = {
    **dict.fromkeys(
        UNKNOWN_KEY_CODES,
        (StorageDenied, f"the store does not know the access key; {_SET_CREDENTIALS}"),
    ),
    **dict.fromkeys(
        EXPIRED_CODES,
        (
            StorageDenied,
            "the session token has expired or is not valid; fetch new credentials and start again",
        ),
    ),
    **dict.fromkeys(
        WRONG_REGION_CODES,
        (StoreNotFound, "the bucket is in another region; set AWS_REGION to it"),
    ),
    **dict.fromkeys(FULL_CODES, (StorageFull, "no space left")),
    "SignatureDoesNotMatch": (
        StorageDenied,
        (
            "the secret key is not that of the access key; correct AWS_SECRET_ACCESS_KEY or the "
            "profile"
        ),
    ),
    "RequestTimeTooSkewed": (
        StorageDenied,
        "this machine's clock is wrong; set it, for instance by NTP",
    ),
    "AccountProblem": (StorageDenied, "the account is blocked; ask its owner"),
    "NoSuchBucket": (
        StoreNotFound,
        "there is no such bucket; create it, or correct the URI or the endpoint (AWS_ENDPOINT_URL)",
    ),
}


def translated(error: Exception, operation: str, key: str, *, where: str) -> StorageError:
    """The storage error that says what a person or a caller can do about it.

    Args:
        where: The store, as a person would write it.
    """
    if isinstance(error, StorageError):
        return error
    kind, sentence = (
        _of_answer(error, operation)
        if isinstance(error, ClientError)
        else _of_client(error, operation)
    )
    if kind in (ObjectNotFound, ObjectExists):
        return kind(sentence, key=key)
    return kind(f"{where}: {without_secrets(sentence)}", key=key)


def without_secrets(text: str) -> str:
    """``text`` on one line, without the user and password that a URL in it may hold."""
    return _USER_INFO.sub("//", " ".join(text.split()))


def holds_secrets(error: Exception) -> bool:
    """Whether an error's own text may hold a secret, so that it must not be shown as a cause."""
    if isinstance(error, PROVIDER_ERRORS) and error.kwargs.get("provider") == _PROCESS:
        return True
    return _USER_INFO.search(str(error)) is not None


def _of_answer(error: ClientError, operation: str) -> Meaning:
    code, status = code_of(error), status_of(error)
    if code in _MEANINGS:
        kind, sentence = _MEANINGS[code]
        return kind, f"{sentence} ({code})"
    if not _is_own(error, operation) and not is_passing(error):  # of the credentials' source
        return StorageDenied, f"{error.operation_name} refused: {_told(error)}"
    if code == "InvalidBucketName":
        return StoreNotFound, f"not a name of a bucket: {_told(error)}"
    if code in ("NoSuchKey", "NoSuchUpload") or status == 404:
        return ObjectNotFound, "no such object"
    if code == "PreconditionFailed" or status == 412:
        return ObjectExists, "the name is taken"
    if status in (401, 403) or code in REFUSED_CODES:
        return StorageDenied, _refusal(error, operation)
    return StorageUnavailable, f"{operation} failed: {_told(error)}"


def _of_client(error: Exception, operation: str) -> Meaning:
    if isinstance(error, PROVIDER_ERRORS):
        return _of_provider(error)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageDenied, f"no complete credentials were found; {_SET_CREDENTIALS}"
    if isinstance(error, SSOError | UnauthorizedSSOTokenError):
        return StorageDenied, f"{error}; sign in again (aws sso login)"
    if isinstance(error, ProfileNotFound):
        return StorageDenied, f"{error}; correct AWS_PROFILE"
    if isinstance(error, ParamValidationError):
        return StoreNotFound, f"not a name of a bucket or object: {error}"
    if isinstance(error, EndpointProviderError):
        return StoreNotFound, f"{error}; write AWS_ENDPOINT_URL as https://host:port"
    if is_untrusted(error):
        return StorageUnavailable, (
            f"{operation} failed: {error}; correct the endpoint (AWS_ENDPOINT_URL), or set "
            "AWS_CA_BUNDLE to the file of the authority that signed its certificate"
        )
    if isinstance(error, SSLError):
        return StorageUnavailable, (
            f"{operation} failed: the TLS connection broke: {error.kwargs.get('error')}"
        )
    told = _told(error)
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        told += "; check the network and the endpoint (AWS_ENDPOINT_URL)"
    return StorageUnavailable, f"{operation} failed: {told}"


def _of_provider(error: Exception) -> Meaning:
    context = error.kwargs if isinstance(error, BotoCoreError) else {}
    provider = context.get("provider", _SERVICES[-1])
    if provider == _PROCESS:
        return StorageDenied, (
            "no credentials came from credential_process (custom-process): it failed or gave "
            "expired ones; run it by hand: what it says may hold secrets and is not repeated here"
        )
    told = f"no credentials came from {provider}: {context.get('error_msg', error)}"
    return (StorageUnavailable if provider in _SERVICES else StorageDenied), told


def _refusal(error: ClientError, operation: str) -> str:
    permission = _PERMISSIONS.get(operation, "s3:PutObject")
    named = set(_ACTION.findall(_said(error)))
    remedy = (
        "grant what is named here"
        if named and not named <= set(permission.split(" and "))
        else f"grant {permission} there to these credentials"
    )
    said = f"; the store says: {_said(error)}" if _said(error) else ""
    return f"permission refused ({code_of(error)}): {remedy}{said}"


def _is_own(error: ClientError, operation: str) -> bool:
    """Whether the request itself was answered, and not one for its credentials."""
    return str(xform_name(error.operation_name)) == operation


def _said(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message") or "").strip()


def _told(error: Exception) -> str:
    if isinstance(error, ClientError):
        return f"{code_of(error)}: {_said(error)}"
    if isinstance(error, BotoCoreError):
        return str(error)
    return f"{type(error).__name__}: {error}"
