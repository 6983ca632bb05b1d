"""What several judges ask of a resume."""

from keepstep.commit.catalog import Status
from keepstep.drills.history import History, Start
from keepstep.drills.verdicts import Objection

_SET_ASIDE = (Status.QUARANTINED, Status.SUPERSEDED)


def require_newest(history: History, start: Start) -> None:
    """A start goes on from what earlier ledgers call committed, also if its manifest is gone now.

    *Raises:* ``Objection`` if it went on from less.
    """
    aside = {checkpoint.id for checkpoint in history.checkpoints if checkpoint.status in _SET_ASIDE}
    newest = max(history.saved_before(start.generation) - aside, default=None)
    if newest is not None and (start.resumed_from is None or start.resumed_from < newest):
        raise Objection(
            f"generation {start.generation} resumed from {start.resumed_from}, though {newest} was "
            "committed"
        )
