"""What judges are given, and what they answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from keepstep.drills.history import History
from keepstep.drills.inject import Damage
from keepstep.drills.run import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All there is to judge a drill by."""

    history: History
    reference: History
    """Of an uninterrupted run with the same settings."""
    results: tuple[Result, ...] = ()
    damages: tuple[Damage, ...] = ()
    objects_before: Mapping[str, str] = field(default_factory=dict)
    """Digests of all objects after the damage, before the next start."""
    objects_after: Mapping[str, str] = field(default_factory=dict)
    samples_per_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one judge says."""

    judge: str
    invariant: str
    """The promise, ``I1`` to ``I11``."""
    is_good: bool
    evidence: str


class Objection(Exception):
    """The first thing that a judge found wrong."""
