"""What a manifest will say, as far as it is known when a save begins."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from keepstep._version import __version__
from keepstep.commit.layout import CheckpointId
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.session.saving import Describe


def draft_manifest(**known: Any) -> Describe:
    """A manifest without what only its attempt can tell.

    Args:
        known: Its other fields, by name.
    """
    draft = partial(
        Manifest,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        keepstep_version=__version__,
        torch_version=torch.__version__,
        **known,
    )

    def describe(
        attempt: CheckpointId, objects: tuple[ObjectRecord, ...], state_digest: str
    ) -> Manifest:
        return draft(
            step=attempt.step,
            generation=attempt.generation,
            attempt=attempt.attempt,
            state_digest=state_digest,
            objects=objects,
        )

    return describe
