"""Acts on the storage of a run: where it is kept, and what goes wrong there."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from keepstep.drills.scenario import Act

_PLAYERS = "keepstep.drills.players.storage"


class Mishap(StrEnum):
    """What befalls the disk or the S3 server."""

    FILL = "fill"
    """Another file takes all the space."""
    FREE = "free"
    """That file goes."""
    FAIL = "fail"
    """The file system finds an error in itself, and turns read-only."""
    REPAIR = "repair"
    """It is mounted anew, as when the machine starts again."""
    KILL_SERVER = "kill server"
    START_SERVER = "start server"


class Distortion(StrEnum):
    """What becomes of a request to the S3 server."""

    SLOW_DOWN = "slow-down"
    """503, as a server says it that is asked too much."""
    EXPIRED = "expired"
    """400: the credentials are too old."""
    TORN = "torn"
    """The connection is reset in the middle of an upload."""
    UNANSWERED = "unanswered"
    """The server does as it is asked, and its reply is lost."""
    CRAWL = "crawl"
    """Bodies pass slowly."""


@dataclass(frozen=True, slots=True)
class Mount(Act):
    """From here on the run is kept on a small disk of its own, a real file system."""

    player: ClassVar[str] = f"{_PLAYERS}:play_mount"


@dataclass(frozen=True, slots=True)
class Serve(Act):
    """From here on the run is kept by an S3 server of its own, behind a proxy."""

    player: ClassVar[str] = f"{_PLAYERS}:play_serve"


@dataclass(frozen=True, slots=True)
class Happen(Act):
    """Let something befall the storage."""

    player: ClassVar[str] = f"{_PLAYERS}:play_happen"

    mishap: Mishap


@dataclass(frozen=True, slots=True)
class Distort(Act):
    """From here on uploads go wrong."""

    player: ClassVar[str] = f"{_PLAYERS}:play_distort"

    distortion: Distortion
    path: str
    """Only of keys that hold this."""
    times: int | None = None
    """How many of them; ``None`` for all."""
