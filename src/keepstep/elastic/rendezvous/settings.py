"""What ``--rdzv-endpoint`` and ``--rdzv-conf`` may say to the keepstep backend."""

from dataclasses import dataclass, fields
from typing import Any

from keepstep.errors import ConfigError

DEFAULT_PORT = 29400

_OF_TORCHRUN = ("timeout", "rank")  # put there by torchrun itself


@dataclass(frozen=True, slots=True)
class Settings:
    """All in seconds, and measured on this node's monotonic clock."""

    join_timeout: float = 600.0
    """How long a node waits for a round with enough others."""
    last_call_timeout: float = 10.0
    """How long nodes that are enough for a first round wait for one more, after each arrival."""
    heartbeat_interval: float = 0.5
    heartbeat_timeout: float = 4.0
    """A node whose heartbeat has not been seen to change for so long is taken for dead."""
    admit_timeout: float = 60.0
    """How long nodes that come while training runs wait for a commit, before training is
    interrupted for them all the same."""
    settle_timeout: float = 3.0
    """How long no further node must have come, so that a burst costs one restart."""
    store_timeout: float = 120.0
    """How long a node that needs the store, to form a round, waits for one that is away."""
    stop_timeout: float | None = None
    """Grace for workers that are stopped for a restart. None: torchrun's ``--shutdown-timeout``."""
    is_host: bool | None = None
    """Whether this node hosts the store. None: if nobody answers at the endpoint, and the
    endpoint is this node's own address."""


def address_from(option: str, text: str) -> tuple[str, int]:
    """Host and port of the store in ``HOST[:PORT]``. *Raises:* ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{option}={text}: {port!r} is no port; write HOST:PORT")
    return host.strip("[]"), int(port)


def settings_from(conf: dict[str, Any]) -> Settings:
    """*Raises:* ConfigError naming what is unknown or out of bounds."""
    known = {field.name for field in fields(Settings)}
    unknown = sorted(set(conf) - known - set(_OF_TORCHRUN))
    if unknown:
        raise ConfigError(
            f"--rdzv-conf says {', '.join(unknown)}, which the keepstep backend does not know: "
            f"it knows {', '.join(sorted(known))}"
        )
    given = {name: value for name, value in conf.items() if name in known}
    is_host = given.pop("is_host", None)
    numbers = {name: _seconds(name, value) for name, value in given.items()}
    settings = Settings(**numbers, is_host=None if is_host is None else _flag(is_host))
    if settings.heartbeat_timeout < 4 * settings.heartbeat_interval:
        raise ConfigError(
            f"--rdzv-conf heartbeat_timeout={settings.heartbeat_timeout:g} leaves no room for a "
            f"lost beat: at least four heartbeat_interval ({settings.heartbeat_interval:g}) apart"
        )
    return settings


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"--rdzv-conf {name}={value}: a positive number of seconds is needed")
    return seconds


def _flag(value: Any) -> bool:
    word = str(value).lower()
    if word in ("1", "true", "yes"):
        return True
    if word in ("0", "false", "no"):
        return False
    raise ConfigError(f"--rdzv-conf is_host={value}: write true or false")
