"""keepstep: fault-tolerant distributed training for PyTorch."""

from typing import TYPE_CHECKING, Any

from keepstep._version import __version__

if TYPE_CHECKING:
    from keepstep.session import (
        EarlyStopping,
        Lost,
        NoticeSources,
        Preemption,
        Restored,
        Save,
        Session,
        Skipped,
        Stop,
        load,
        open,
    )

__all__ = [
    "open",
    "load",
    "Session",
    "Restored",
    "Lost",
    "Skipped",
    "Save",
    "Stop",
    "Preemption",
    "NoticeSources",
    "EarlyStopping",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """The names above, imported when they are first used: the command line needs no torch."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import keepstep.session

    return getattr(keepstep.session, name)
