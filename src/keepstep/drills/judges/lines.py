"""Judges of which history counts, when several jobs or wrong clocks are at work on one run."""

from keepstep.commit.catalog import Status
from keepstep.drills.evidence import Evidence
from keepstep.drills.judges.resumes import require_newest
from keepstep.drills.judges.table import Judges
from keepstep.drills.verdicts import Objection

_NOTICEABLE = 0.9


def resumed_newest(evidence: Evidence) -> str:
    """Each start went on from the newest commit before it, by step and generation, not by time."""
    shown = []
    for start in evidence.history.starts[1:]:
        before = [c.id for c in evidence.history.committed if c.id.generation < start.generation]
        expected = max(before, default=None)
        if start.resumed_from != expected:
            raise Objection(
                f"generation {start.generation} resumed from {start.resumed_from}, not from "
                f"{expected}"
            )
        require_newest(evidence.history, start)
        shown.append(f"generation {start.generation} from {expected}")
    if not shown:
        raise Objection("there was no resume")
    return "; ".join(shown)


def clocks_were_wrong(evidence: Evidence) -> str:
    """By their ledgers, ranks made the same step at times as far apart as their clocks were."""
    skews = evidence.notes.get("skew_seconds") or [0.0]
    wanted = max(skews) - min(skews)
    if not wanted:
        raise Objection("all clocks were alike")
    times: dict[tuple[int, int], list[float]] = {}
    for event in evidence.events:
        if event["event"] == "samples":
            times.setdefault((event["generation"], event["step"]), []).append(event["time"])
    widest = max((max(each) - min(each) for each in times.values()), default=0.0)
    if widest < _NOTICEABLE * wanted:
        raise Objection(f"clocks were at most {widest:.1f} s apart, not {wanted:.0f} s")
    return f"ranks made the same step {widest:.0f} s apart, by their clocks"


def clock_stepped_back(evidence: Evidence) -> str:
    """By the ledger of one rank, a step was made long before the one that came before it."""
    wanted = max(evidence.notes.get("skew_seconds", ()), default=0.0)
    if not wanted:
        raise Objection("no clock was wrong")
    newest: dict[tuple[int, int], float] = {}
    back = 0.0
    for event in evidence.events:
        who = (event["generation"], event["rank"])
        back = max(back, newest.get(who, event["time"]) - event["time"])
        newest[who] = max(newest.get(who, 0.0), event["time"])
    if back < _NOTICEABLE * wanted:
        raise Objection(f"no clock went back by {wanted:.0f} s, but at most by {back:.1f} s")
    return f"a clock went back by {back:.0f} s"


def competed(evidence: Evidence) -> str:
    """The older job was at work when the newer had begun, and nothing it committed then counts."""
    starts = evidence.history.starts
    if len(starts) < 2:
        raise Objection("there was only one start")
    older, newer = starts[0], starts[1]
    begun = min(
        (e["time"] for e in evidence.events if e["generation"] == newer.generation),
        default=None,
    )
    late = [
        e
        for e in evidence.events
        if e["event"] == "samples"
        and e["generation"] == older.generation
        and begun is not None
        and e["time"] > begun
    ]
    if not late:
        raise Objection("the older job made no step beside the newer one")
    source = newer.resumed_from
    for checkpoint in evidence.history.committed:
        is_older = checkpoint.id.generation == older.generation
        if is_older and (source is None or checkpoint.id > source):
            raise Objection(f"{checkpoint.id} of the older job counts")
    steps = sorted({e["step"] for e in late})
    return f"the older job made steps {steps[0]} to {steps[-1]} beside the newer; none counts"


def stepped_over(evidence: Evidence) -> str:
    """A checkpoint that kills every start is set aside, whole as it is, for the one before it."""
    aside = [c for c in evidence.history.checkpoints if c.status is Status.QUARANTINED]
    if len(aside) != 1 or not evidence.history.starts:
        raise Objection(f"{len(aside)} checkpoints are set aside, not one")
    (poison,) = aside
    if poison.damages:
        raise Objection(f"{poison.id} is damaged, which is another matter: {poison.damages[0]}")
    last = evidence.history.starts[-1]
    if last.resumed_from is None or last.resumed_from.step >= poison.id.step:
        raise Objection(f"the last start resumed from {last.resumed_from}")
    return f"{poison.id} is set aside; the last start resumed from step {last.resumed_from.step}"


JUDGES: Judges = {
    "clock_stepped_back": ("I2", clock_stepped_back),
    "clocks_were_wrong": ("I2", clocks_were_wrong),
    "competed": ("I2", competed),
    "resumed_newest": ("I2", resumed_newest),
    "stepped_over": ("I4", stepped_over),
}
