"""Going back to an earlier checkpoint: for the best weights, or behind data that did harm."""

import logging
from collections.abc import Iterator

from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import CheckpointId
from keepstep.commit.manifest import Manifest
from keepstep.commit.retention import best_of
from keepstep.commit.rollback import roll_back
from keepstep.commit.skips import Skip, mark_skip
from keepstep.commit.starting import announced_start
from keepstep.config.keep import Best
from keepstep.errors import CorruptCheckpointError, ObjectNotFound
from keepstep.state.early_stopping import parse_metric
from keepstep.storage.base import Storage

logger = logging.getLogger("keepstep.session")


def best_checkpoint(storage: Storage, metric: str) -> Manifest | None:
    """Of all that can be resumed from; of equal values the earliest. *Ranks:* coordinator.

    *Raises:* ``ConfigError`` for a metric that is not written ``name:min`` or ``name:max``.
    """
    rule = Best(*parse_metric(metric), count=1)
    oldest_first = reversed(list(_readable(Catalog(storage))))
    found = best_of(rule, ((manifest, manifest.metrics) for manifest in oldest_first))
    return found[0] if found else None


def go_behind(storage: Storage, skip: Skip, *, reason: str) -> CheckpointId | None:
    """Mark data to be left out, and have the next start resume from before it.

    Returns the checkpoint that it will resume from; ``None`` if there is none that old: then the
    newest is resumed from, and only what is still ahead of it is left out.

    *Ranks:* coordinator. *Durability:* as :func:`mark_skip`.
    """
    mark_skip(storage, skip, reason=reason)
    with announced_start(storage) as start:
        catalog = Catalog(storage)
        candidates = catalog.candidates()
        for manifest in _readable(catalog):
            if manifest.progress.get("samples", 0) <= skip.start:
                if manifest.id != candidates[0]:
                    roll_back(storage, manifest.id, start)
                return manifest.id
        return None


def _readable(catalog: Catalog) -> Iterator[Manifest]:
    """Of what can be resumed from, newest first. Damage is for the next resume to act upon."""
    for candidate in catalog.candidates():
        try:
            yield catalog.manifest(candidate)
        except (CorruptCheckpointError, ObjectNotFound) as error:
            logger.warning("%s is passed over: %s", candidate, error)
