"""What has to hold of a store before training starts, and what earlier starts left in it."""

import logging

from keepstep.checkpoint.parallel import for_each
from keepstep.commit.layout import STEPS
from keepstep.commit.uploads import stale_uploads
from keepstep.errors import ConfigError, StorageError
from keepstep.storage.base import KeepsUploads, Storage, Upload
from keepstep.storage.probe import creates_exclusively

logger = logging.getLogger("keepstep.session")


def check_exclusive_create(storage: Storage, *, single_writer: bool) -> None:
    """See to it that of two jobs that commit the same thing only one can.

    Also the first request to the store that writes: what is wrong with credentials, bucket or
    policy shows here.

    *Ranks:* coordinator. *Raises:* ``ConfigError`` if the store cannot create exclusively and
    nobody vouches for a single writer; ``StorageError``.
    """
    if single_writer:
        logger.warning(
            "%s is written as by a single writer: two jobs at once could replace each other's "
            "commits, and nothing would notice",
            storage.uri,
        )
    elif storage.capabilities.is_remote and not creates_exclusively(storage):
        raise ConfigError(
            f"{storage.uri} cannot create objects exclusively: a second create replaced the first. "
            "Two jobs on this run could replace each other's commits. Use another store; or, if "
            "never two jobs work on the run at a time, set storage.single_writer=true "
            "(keepstep.open: single_writer=True)"
        )


def abort_stale_uploads(storage: Storage, generation: int) -> None:
    """Let go of multipart uploads of earlier generations: nothing can complete them any more.

    *Ranks:* coordinator, after its claim. What fails is logged; ``keepstep gc --uploads`` tries
    again.
    """
    if not isinstance(storage, KeepsUploads):
        return

    def abort(upload: Upload) -> None:
        storage.abort_upload(upload)
        logger.info("aborted an unfinished upload of %s", upload.key)

    try:
        stale = stale_uploads(storage.uploads(STEPS), generation)
        for_each(stale, abort, num_threads=storage.capabilities.concurrency)
    except StorageError as error:
        logger.warning("unfinished uploads may be left in %s: %s", storage.uri, error)
