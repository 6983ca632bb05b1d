"""What to say of a history: pure functions, each named after what it finds true.

Every verdict names the promise it is about and the evidence it rests on. Each module has a table
of its judges.
"""

from keepstep.drills.evidence import Evidence
from keepstep.drills.judges import ends, endurance, lines, nodes, restores, store, work
from keepstep.drills.judges.table import Judges
from keepstep.drills.verdicts import NothingToExamine, Objection, Verdict

JUDGES: Judges = {
    **ends.JUDGES,
    **endurance.JUDGES,
    **lines.JUDGES,
    **nodes.JUDGES,
    **restores.JUDGES,
    **store.JUDGES,
    **work.JUDGES,
}
"""By name: the promise, and the judge."""


def judge(name: str, evidence: Evidence) -> Verdict | None:
    """The verdict of one judge; ``None`` if there was nothing for it to examine."""
    invariant, examine = JUDGES[name]
    try:
        return Verdict(name, invariant, is_good=True, evidence=examine(evidence))
    except NothingToExamine:
        return None
    except Objection as objection:
        return Verdict(name, invariant, is_good=False, evidence=str(objection))
