"""From a URI to a store over the fsspec package that knows its scheme."""

import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

from fsspec.registry import get_filesystem_class, known_implementations

from keepstep.errors import ConfigError
from keepstep.storage.fsspec_storage import FsspecStorage
from keepstep.storage.retrying import RetryPolicy

_OBJECT_STORES = {"abfs", "abfss", "az", "gcs", "gs", "memory"}
"""Files there appear whole when they are closed, and ``mode="create"`` is left to the store."""

_SECRET_OPTION = re.compile("pass|secret|token|key|credential|connection_string", re.IGNORECASE)


def open_fsspec(
    uri: str, *, single_writer: bool, policy: RetryPolicy | None = None
) -> FsspecStorage:
    """The store below a URI such as ``gs://bucket/prefix`` or ``sftp://host/directory``.

    The package that knows the scheme is imported; nothing is contacted yet. Its settings come from
    where it looks for them itself, and from fsspec's configuration.

    *Raises:* ``ConfigError`` naming the scheme and what to install.
    """
    parts = urlsplit(uri)
    where = _without_credentials(parts)
    implementation = _implementation(parts.scheme, where)
    options = implementation._get_kwargs_from_urls(uri)  # noqa: SLF001  # as fsspec.core does
    root = str(implementation._strip_protocol(uri)).rstrip("/")  # noqa: SLF001
    if not root and parts.scheme != "memory":
        raise ConfigError(f"uri {where!r} names no bucket or directory; write {where}name")
    is_object_store = parts.scheme in _OBJECT_STORES

    def connect() -> Any:
        # One object serves all threads where it runs a loop of its own; else each has one.
        is_shared = getattr(implementation, "async_impl", False)
        return implementation(**options, skip_instance_cache=not is_shared)

    return FsspecStorage(
        connect,
        root,
        uri=where,
        is_object_store=is_object_store,
        is_exclusive=is_object_store and not single_writer,
        is_remote=parts.scheme != "memory",
        secrets=_secrets(parts, options),
        policy=policy,
    )


def _implementation(scheme: str, where: str) -> Any:
    try:
        return get_filesystem_class(scheme)
    except ValueError:
        raise ConfigError(
            f"uri {where!r}: no store for the scheme {scheme!r}; use a path, s3:// or one of "
            "fsspec's"
        ) from None
    except ImportError as error:
        wanted = known_implementations.get(scheme, {})
        package = wanted.get("class", "").partition(".")[0]
        remedy = f"pip install {package}" if package not in ("", "fsspec") else wanted.get("err")
        raise ConfigError(
            f"uri {where!r}: a package for the scheme {scheme!r} is missing; {remedy or error}"
        ) from error


def _without_credentials(parts: SplitResult) -> str:
    """The URI as it may be shown: no password, and no query, which may hold a token."""
    user_and_password, at, host = parts.netloc.rpartition("@")
    user = user_and_password.partition(":")[0]
    return f"{parts.scheme}://{user}{at}{host}{parts.path}"


def _secrets(parts: SplitResult, options: dict[str, Any]) -> tuple[str, ...]:
    found: list[object] = [parts.password, parts.query]
    found += [value for name, value in options.items() if _SECRET_OPTION.search(name)]
    return tuple({value for value in found if isinstance(value, str) and len(value) > 2})
