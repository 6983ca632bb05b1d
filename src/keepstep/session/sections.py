"""What the sections of the work took in earlier generations: the watchdog learns from it.

The coordinator's ledger keeps it: so it survives any restart, and all ranks take over the same.
"""

import logging
from collections.abc import Mapping

from keepstep.commit.catalog import Catalog
from keepstep.errors import KeepstepError
from keepstep.observability.ledger import Ledger
from keepstep.session.history import last_events
from keepstep.storage.base import Storage

logger = logging.getLogger("keepstep.session")

SECTIONS = "sections"
"""The event that says how long each section took at most."""

_LAST_BYTES = 256 << 10
_GENERATIONS = 5


class SectionRecord:
    """Writes how long sections took, whenever that has changed by much. *Ranks:* coordinator."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._written: dict[str, float] = {}

    def note(self, longest: Mapping[str, float]) -> None:
        """Write it, if it is news: something took a tenth longer than is written."""
        if all(seconds <= 1.1 * self._written.get(name, 0.0) for name, seconds in longest.items()):
            return
        self._written = dict(longest)
        rounded = {name: round(seconds, 3) for name, seconds in longest.items()}
        self._ledger.record(SECTIONS, longest_s=rounded)


def longest_before(storage: Storage, generation: int) -> dict[str, float]:
    """Seconds by section, of the last generation that tells.

    What cannot be read is not known: deadlines are then those of a new run.
    """
    try:
        earlier = [n for n in Catalog(storage).generations() if n < generation]
        for number in reversed(earlier[-_GENERATIONS:]):
            for event in reversed(last_events(storage, number, last_bytes=_LAST_BYTES)):
                if event["event"] == SECTIONS:
                    return {name: float(seconds) for name, seconds in event["longest_s"].items()}
    except (AttributeError, KeepstepError, KeyError, TypeError, ValueError) as error:
        logger.warning("how long sections may take has to be learned anew: %s", error)
    return {}
