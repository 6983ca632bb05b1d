"""What the errors of fsspec's many backends mean: worth another attempt, or who must act."""

import errno
from collections.abc import Iterable, Iterator

from keepstep.errors import (
    KeepstepError,
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BUSY_STATUSES = {408, 429}
_LASTING_STATUSES = {501, 507}
_PASSING_NAMES = {  # of backends that are not imported here
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "ServiceRequestError",  # azure
    "ServiceResponseError",
    "TransportError",  # google.auth
}
_DENIED_NAMES = {
    "AuthenticationException",  # paramiko
    "ClientAuthenticationError",  # azure
    "DefaultCredentialsError",  # google.auth
    "RefreshError",
}


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a moment later: no answer, a lost one, or too busy."""
    if isinstance(error, StorageUnavailable | TimeoutError | ConnectionError):
        return True
    status = _status(error)
    if status in _BUSY_STATUSES or (status >= 500 and status not in _LASTING_STATUSES):
        return True
    return bool(_PASSING_NAMES & set(_names(error)))


def cause_of(error: Exception) -> str:
    """The HTTP status, or the kind of error."""
    return str(_status(error) or type(error).__name__)


def translated(
    error: Exception, operation: str, key: str, *, where: str, secrets: Iterable[str] = ()
) -> KeepstepError:
    """The storage error that says what a person or a caller can do about it.

    Args:
        where: The store, as a person would write it.
        secrets: What must not be repeated, though a backend may say it.
    """
    if isinstance(error, KeepstepError):
        error.key = error.key or key
        return error
    told = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    for secret in secrets:
        told = told.replace(secret, "***")
    kind, sentence = _meaning(error, operation)
    return kind(f"{where}: {sentence} ({told})" if sentence else told, key=key)


def tells(error: Exception, secrets: Iterable[str]) -> bool:
    """Whether an error's own text holds a secret, so that it must not be shown as a cause."""
    text = f"{error} {error!r}"
    return any(secret in text for secret in secrets)


def _meaning(error: Exception, operation: str) -> tuple[type[StorageError], str]:
    number = error.errno if isinstance(error, OSError) else None
    status = _status(error)
    if isinstance(error, FileExistsError) or status == 412:
        return ObjectExists, "the name is taken"
    if isinstance(error, FileNotFoundError) or status == 404:
        return ObjectNotFound, "no such object"
    if number in _FULL or status == 507:
        return StorageFull, "no space left"
    if isinstance(error, NotImplementedError):
        return StorageDenied, f"this kind of store cannot {operation}"
    if (
        isinstance(error, PermissionError)
        or number in _DENIED
        or status in (401, 403)
        or _DENIED_NAMES & set(_names(error))
    ):
        return StorageDenied, f"{operation} refused: correct the credentials or what they may do"
    return StorageUnavailable, f"{operation} failed"


def _status(error: Exception) -> int:
    """Of the HTTP answer; 0 where there was none."""
    for name in ("status_code", "status", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int | str) and str(value).isdecimal():
            return int(value)
    return 0


def _names(error: Exception) -> Iterator[str]:
    return (kind.__name__ for kind in type(error).__mro__)
