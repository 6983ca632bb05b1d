"""What judges are given: what happened in a drill, and in the run it is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keepstep.drills.history import History, tell
from keepstep.drills.inject import Damage
from keepstep.drills.record import Record
from keepstep.drills.remains import Remains
from keepstep.drills.results import Injection, Result
from keepstep.drills.scenario import Leg

_NOTHING = Remains(events=(), claims=(), checkpoints=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All there is to judge a drill by."""

    history: History
    reference: History
    """Of an uninterrupted run with the same settings."""
    results: tuple[Result, ...] = ()
    injections: tuple[Injection, ...] = ()
    damages: tuple[Damage, ...] = ()
    objects_before: Mapping[str, str] = field(default_factory=dict)
    """Digests of all objects after the damage, before the next start."""
    objects_after: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What players noted for judges of their own."""
    events: tuple[Mapping[str, Any], ...] = ()
    """Of the ledgers of all ranks and generations, for what the history does not tell."""
    samples_per_epoch: int | None = None
    planned_kills: int = 0
    """Ranks that were to be killed at crash sites."""


def evidence_of(record: Record) -> Evidence:
    """What a record tells."""
    return Evidence(
        history=tell(record.remains or _NOTHING),
        reference=tell(record.reference or _NOTHING),
        results=record.results,
        injections=record.injections,
        damages=record.damages,
        objects_before=record.objects_before,
        objects_after=record.objects_after,
        notes=record.notes,
        events=(record.remains or _NOTHING).events,
        samples_per_epoch=record.drill.samples_per_epoch,
        planned_kills=sum(
            act.failpoints.count("=kill@") for act in record.drill.acts if isinstance(act, Leg)
        ),
    )
