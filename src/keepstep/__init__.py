"""keepstep: fault-tolerant distributed training for PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from keepstep._version import __version__

if TYPE_CHECKING:
    from keepstep.elastic.preemption import NoticeSources, Preemption
    from keepstep.session.loading import load
    from keepstep.session.opening import open
    from keepstep.session.results import Lost, Restored, Skipped, Stop
    from keepstep.session.saving import Save
    from keepstep.session.session import Session
    from keepstep.state.early_stopping import EarlyStopping

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

_HOMES = {
    "open": "keepstep.session.opening",
    "load": "keepstep.session.loading",
    "Session": "keepstep.session.session",
    "Save": "keepstep.session.saving",
    **dict.fromkeys(("Restored", "Lost", "Skipped", "Stop"), "keepstep.session.results"),
    **dict.fromkeys(("Preemption", "NoticeSources"), "keepstep.elastic.preemption"),
    "EarlyStopping": "keepstep.state.early_stopping",
}


def __getattr__(name: str) -> Any:
    """The names above, imported when they are first used: the command line needs no torch."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)
