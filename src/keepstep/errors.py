"""Every error keepstep raises, arranged by what a handler does about it.

::

    KeepstepError
    |- ConfigError (ValueError)               fix the configuration; a restart will not help
    |  |- StateMismatchError                  checkpoint and model do not fit each other
    |  '- UnsupportedFormatError              written by a newer keepstep
    |- StorageError (OSError)                 the environment
    |  |- StorageUnavailable                  worth another attempt, later
    |  |  '- ClaimInDoubt                     of a generation: it may be carried out yet
    |  |- StorageFull
    |  |- StorageDenied (PermissionError)
    |  |- StoreNotFound                       bucket, region or endpoint is wrong
    |  |- ObjectNotFound (FileNotFoundError)
    |  '- ObjectExists (FileExistsError)      an exclusive create came second
    |- DeviceError                            a GPU of this machine fails; another machine may do
    |- CommitError                            this step is not committed; training may go on
    |  |- CommitAborted                       a rank reported failure; see .failures
    |  '- CommitOutcomeUnknown                the publish may have landed; read it back
    |- FencedError                            a newer generation owns the run; stop quietly
    |- CorruptCheckpointError                 bytes disagree with what vouches for them
    |  '- AllCheckpointsDamagedError          nothing left to fall back to
    |- NoCheckpointError (FileNotFoundError)  asked to resume, nothing committed
    |- CoordinationError                      the ranks could not agree in time
    |  '- BarrierTimeout
    |- LossSpikeError                       going back to before the data that did harm
    '- InternalError                          an invariant broke: a bug in keepstep

Each takes one positional message and optional keyword context, so that it survives pickling between
ranks with all of its fields.
"""

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """What a process tells its scheduler. The table with remedies is docs/errors.md."""

    OK = 0
    ERROR = 1
    USAGE = 64
    DAMAGED = 65
    NO_CHECKPOINT = 66
    STORAGE_UNAVAILABLE = 69
    INTERNAL = 70
    DEVICE = 71
    TRANSIENT = 75
    DENIED = 77
    CONFIG = 78
    PREEMPTED = 85
    PREEMPTED_UNSAVED = 86
    FENCED = 87
    HUNG = 88
    NO_PROGRESS = 93


FINAL_CODES = frozenset(
    {
        ExitCode.USAGE,
        ExitCode.DAMAGED,
        ExitCode.NO_CHECKPOINT,
        ExitCode.STORAGE_UNAVAILABLE,
        ExitCode.INTERNAL,
        ExitCode.DEVICE,
        ExitCode.DENIED,
        ExitCode.CONFIG,
        ExitCode.FENCED,
        ExitCode.NO_PROGRESS,
    }
)
"""After which another start, here and now, would not help."""


class KeepstepError(Exception):
    """Root of the tree. Context that is not known stays ``None``."""

    exit_code = ExitCode.ERROR

    def __init__(
        self,
        message: str = "",
        *,
        step: int | None = None,
        generation: int | None = None,
        attempt: str | None = None,
        rank: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.step = step
        self.generation = generation
        self.attempt = attempt
        self.rank = rank
        self.key = key

    def __str__(self) -> str:
        message = super().__str__()
        context = [
            f"{name} {value}"
            for name in ("step", "generation", "attempt", "rank", "key")
            if (value := getattr(self, name)) is not None and str(value) not in message
        ]
        return f"{message} ({', '.join(context)})" if context else message


class ConfigError(KeepstepError, ValueError):
    """A setting is wrong: the message names the field, the value, its source and what to do."""

    exit_code = ExitCode.CONFIG


class StateMismatchError(ConfigError):
    """Checkpoint and tracked objects do not fit. Nothing has been changed."""


class UnsupportedFormatError(ConfigError):
    """Written in a format newer than this keepstep reads."""


class StorageError(KeepstepError, OSError):
    """The store refused or failed."""

    exit_code = ExitCode.STORAGE_UNAVAILABLE


class StorageUnavailable(StorageError):
    """The store did not answer, or answered with a passing failure. Another attempt may succeed."""


class ClaimInDoubt(StorageUnavailable):
    """The claim of a generation got no answer: it may be carried out yet."""


class StorageFull(StorageError):
    """No space left."""


class StorageDenied(StorageError, PermissionError):
    """Permission refused."""

    exit_code = ExitCode.DENIED


class StoreNotFound(StorageError):
    """There is no such store: the bucket, its region or the endpoint is wrong."""

    exit_code = ExitCode.CONFIG


class ObjectNotFound(StorageError, FileNotFoundError):
    """No object under this key."""


class ObjectExists(StorageError, FileExistsError):
    """An exclusive create found the name taken.

    It may be taken by our own earlier try: read it back.
    """


class DeviceError(KeepstepError):
    """A GPU that this machine should have does not work. Nothing is wrong with the job."""

    exit_code = ExitCode.DEVICE


class CommitError(KeepstepError):
    """The step is not committed. Earlier commits are untouched and training may go on."""

    exit_code = ExitCode.TRANSIENT


class CommitAborted(CommitError):
    """At least one rank failed before the publish."""

    def __init__(
        self, message: str = "", *, failures: Mapping[int, str] | None = None, **context: object
    ) -> None:
        super().__init__(message, **context)  # type: ignore[arg-type]  # the root names the context
        self.failures = dict(failures or {})
        """What each failing rank said, by rank."""


class CommitOutcomeUnknown(CommitError):
    """The publish may or may not have landed, and the store could not be asked."""


class FencedError(KeepstepError):
    """A newer generation has taken over the run; this process must not write to it any more."""

    exit_code = ExitCode.FENCED


class CorruptCheckpointError(KeepstepError):
    """Bytes disagree with the checksum that vouches for them."""

    exit_code = ExitCode.DAMAGED

    def __init__(self, message: str = "", *, block: int | None = None, **context: object) -> None:
        super().__init__(message, **context)  # type: ignore[arg-type]  # the root names the context
        self.block = block
        """Number of the damaged block in the object, where the damage is that of a block."""


class AllCheckpointsDamagedError(CorruptCheckpointError):
    """Every committed checkpoint is damaged. Nothing has been overwritten."""


class NoCheckpointError(KeepstepError, FileNotFoundError):
    """A checkpoint was required and none is committed."""

    exit_code = ExitCode.NO_CHECKPOINT


class CoordinationError(KeepstepError):
    """The ranks could not agree."""

    exit_code = ExitCode.TRANSIENT


class BarrierTimeout(CoordinationError):
    """A wait among ranks came to its end; the message names who is missing."""


class LossSpikeError(KeepstepError):
    """The loss has leapt: a restart resumes from before it, and leaves the data out."""

    exit_code = ExitCode.TRANSIENT


class InternalError(KeepstepError):
    """An invariant of keepstep broke. Please report it with the message."""

    exit_code = ExitCode.INTERNAL


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that stands for an error; ``ERROR`` for errors that are not keepstep's."""
    return error.exit_code if isinstance(error, KeepstepError) else ExitCode.ERROR
