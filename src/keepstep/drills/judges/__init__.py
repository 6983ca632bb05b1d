"""What to say of a history: pure functions, each named after what it finds true.

Every verdict names the promise it is about and the evidence it rests on. Each module has a table
of its judges.
"""

from keepstep.drills.evidence import Evidence
from keepstep.drills.judges import ends, lines, nodes, store, work
from keepstep.drills.judges.table import Judges
from keepstep.drills.verdicts import Objection, Verdict

JUDGES: Judges = {**ends.JUDGES, **lines.JUDGES, **nodes.JUDGES, **store.JUDGES, **work.JUDGES}
"""By name: the promise, and the judge."""


def judge(name: str, evidence: Evidence) -> Verdict:
    """The verdict of one judge."""
    invariant, examine = JUDGES[name]
    try:
        return Verdict(name, invariant, is_good=True, evidence=examine(evidence))
    except Objection as objection:
        return Verdict(name, invariant, is_good=False, evidence=str(objection))
