"""What the ledgers of earlier generations tell."""

import logging
from datetime import datetime
from typing import Any

from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import ledger_key
from keepstep.commit.lineage import read_generation
from keepstep.errors import KeepstepError
from keepstep.observability.ledger import END, read_ledger
from keepstep.session.pacing import Failures
from keepstep.storage.base import Storage
from keepstep.storage.log import read_log

logger = logging.getLogger("keepstep.session")

_TAIL_BYTES = 4 << 20
"""Tens of thousands of steps: enough to reach back to the last commit."""

_LAST_EVENT_BYTES = 64 << 10
_GENERATIONS = 50


def last_events(
    storage: Storage, generation: int, *, last_bytes: int = _TAIL_BYTES
) -> list[dict[str, Any]]:
    """The end of the coordinator's log of a generation; empty if there is none."""
    return read_ledger(read_log(storage, ledger_key(generation, 0), last_bytes=last_bytes))


def failures_before(storage: Storage, generation: int) -> Failures:
    """How often the run has failed so far, and in what time: of the last fifty generations.

    What cannot be read counts for nothing: this only decides how often to save.
    """
    count, seconds = 0, 0.0
    try:
        earlier = [n for n in Catalog(storage).generations() if n < generation][-_GENERATIONS:]
        for number in earlier:
            events = last_events(storage, number, last_bytes=_LAST_EVENT_BYTES)
            if not events:
                continue
            started = datetime.fromisoformat(read_generation(storage, number).started)
            seconds += max(0.0, float(events[-1]["time"]) - started.timestamp())
            count += events[-1]["event"] != END
    except (KeepstepError, KeyError, TypeError, ValueError) as error:
        logger.warning("how often this run has failed is not known: %s", error)
    return Failures(count, seconds)
