"""The public API of a training loop: one object, few verbs; the loop stays the user's."""

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
]
