"""What to say of a history: pure functions, each named after what it finds true.

Every verdict names the promise it is about and the evidence it rests on. Each module has a table
of its judges.
"""

from keepstep.drills.evidence import Evidence
from keepstep.drills.judges import ends, endurance, lines, nodes, restores, saves, store, work
from keepstep.drills.judges.table import Judges
from keepstep.drills.verdicts import NothingToExamine, Objection, Verdict

JUDGES: Judges = {
    **ends.JUDGES,
    **endurance.JUDGES,
    **lines.JUDGES,
    **nodes.JUDGES,
    **restores.JUDGES,
    **saves.JUDGES,
    **store.JUDGES,
    **work.JUDGES,
}
"""By name: the promise, and the judge."""

_INVARIANT_OF_DRILLS = "I8"
"""What a drill that cannot be judged counts against, as one that cannot be acted."""


def judge(name: str, evidence: Evidence) -> Verdict | None:
    """The verdict of one judge; ``None`` if there was nothing for it to examine.

    Evidence that a judge cannot cope with is no good.
    """
    if name not in JUDGES:
        unknown = "there is no such judge in this version"
        return Verdict(name, _INVARIANT_OF_DRILLS, is_good=False, evidence=unknown)
    invariant, examine = JUDGES[name]
    try:
        return Verdict(name, invariant, is_good=True, evidence=examine(evidence))
    except NothingToExamine:
        return None
    except Objection as objection:
        return Verdict(name, invariant, is_good=False, evidence=str(objection))
    except Exception as error:  # noqa: BLE001  # a judge that cannot go on must not cost the others' verdicts
        failed = f"the judge failed: {type(error).__name__}: {error}"
        return Verdict(name, invariant, is_good=False, evidence=failed)
