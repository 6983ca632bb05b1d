"""Judges of how jobs ended, and of whether what was to befall them did."""

from keepstep.drills.evidence import Evidence
from keepstep.drills.judges.table import Judges
from keepstep.drills.verdicts import Objection


def endings(evidence: Evidence) -> str:
    """Every job ended by itself, as expected, and left no process behind."""
    if not evidence.results:
        raise Objection("no job was run")
    for result in evidence.results:
        if not result.is_as_expected:
            raise Objection(
                f"{result.log.stem} was to end {result.ending}, but its launcher ended with "
                f"{result.code}, workers with {list(result.worker_codes)}, "
                f"{result.orphans} processes left; see {result.log}"
            )
    codes = [r.worker_codes[0] for r in evidence.results if r.worker_codes]
    ended = ", ".join(str(result.ending) for result in evidence.results)
    return f"{ended}{f'; workers with {codes}' if codes else ''}; no process left"


def interrupted(evidence: Evidence) -> str:
    """The failure took place: without it, equality would prove nothing."""
    starts = evidence.history.starts
    if len(starts) < 2:
        raise Objection("the job was never interrupted: its failpoint was not hit")
    killed = sum(injection.kind == "kill" for injection in evidence.injections)
    if killed < evidence.planned_kills:
        raise Objection(f"{evidence.planned_kills} ranks were to be killed, and {killed} were")
    return f"{len(starts)} generations"


JUDGES: Judges = {"endings": ("I8", endings), "interrupted": ("I8", interrupted)}
