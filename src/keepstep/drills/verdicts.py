"""What a judge answers, and what the answers say of each promise."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

INVARIANTS = {
    "I1": "a manifest exists only after every byte it names is durable",
    "I2": "at most one history: what a superseded job commits late does not count",
    "I3": "no torn or mixed checkpoint is ever read",
    "I4": "damage is reported, set aside, and survived on all ranks alike",
    "I5": "a resume on as many ranks goes on bit for bit",
    "I6": "a resume on other ranks restores the same bits and uses each sample once",
    "I7": "nothing that can still be resumed from is removed, and nothing else is left",
    "I8": "every wait has an end, and a job says by its exit code why it ended",
    "I9": "what is committed is a valid stock DCP checkpoint",
    "I10": "loading executes nothing",
    "I11": "a save that fails neither kills nor corrupts training",
}
"""The promises, in short."""


class Standing(StrEnum):
    """What a drill says of a promise."""

    HELD = "held"
    BROKEN = "broken"
    NOT_EXAMINED = "not examined"


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


def standings(verdicts: Iterable[Verdict]) -> dict[str, Standing]:
    """By promise, all eleven: what no judge looked at is not taken for held."""
    found: dict[str, Standing] = dict.fromkeys(INVARIANTS, Standing.NOT_EXAMINED)
    for verdict in verdicts:
        if not verdict.is_good:
            found[verdict.invariant] = Standing.BROKEN
        elif found[verdict.invariant] is Standing.NOT_EXAMINED:
            found[verdict.invariant] = Standing.HELD
    return found
