"""All that a run's ledgers hold."""

import re
from typing import Any

from keepstep.commit.layout import LEDGER
from keepstep.observability.ledger import read_ledger
from keepstep.storage.base import Storage

_LOG = re.compile(r"ledger/g\d{6}/rank-\d{5}(?:\.jsonl|/\d{6}\.jsonl)\Z")


def read_ledgers(storage: Storage) -> list[dict[str, Any]]:
    """Events of all generations and ranks; those of one rank in their own order.

    *Raises:* ``StorageError``.
    """
    keys = sorted(info.key for info in storage.list(LEDGER))
    return [event for key in keys if _LOG.match(key) for event in read_ledger(storage.get(key))]
