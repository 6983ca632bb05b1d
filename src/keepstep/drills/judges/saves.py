"""Judges of saves that went wrong, or nearly: what came of them, and what they did to training."""

from keepstep.drills.evidence import Evidence
from keepstep.drills.history import FailedSave
from keepstep.drills.judges.table import Judges
from keepstep.drills.verdicts import Objection


def every_save_committed(evidence: Evidence) -> str:
    """Whatever storage did, each step that was due is committed; no save failed or was left out."""
    if evidence.history.failed_saves:
        raise Objection(f"the save of step {evidence.history.failed_saves[0].step} failed")
    if not _due(evidence):
        raise Objection("no save was due")
    if missing := _due(evidence) - _committed(evidence):
        raise Objection(f"steps {sorted(missing)} are not committed")
    return f"all of {len(_committed(evidence))} saves are committed"


def failed_everywhere(evidence: Evidence) -> str:
    """Saves that failed did so on all ranks and left nothing that counts; training went on, and
    later saves, like those before, are committed.
    """
    failed = evidence.history.failed_saves
    if not failed:
        raise Objection("no save has failed")
    for each in failed:
        _require_failed(evidence, each)
    steps = {each.step for each in failed}
    if missing := _due(evidence) - _committed(evidence) - steps:
        raise Objection(f"steps {sorted(missing)} are neither committed nor did they fail")
    return f"steps {sorted(steps)} failed on all ranks; {len(_committed(evidence))} others count"


def requests_were_distorted(evidence: Evidence) -> str:
    """The server's proxy did spoil requests: without it, nothing would be proven."""
    distorted = evidence.notes.get("distorted", ())
    if not distorted:
        raise Objection("no request was to be spoiled")
    for kind, hits in distorted:
        if not hits:
            raise Objection(f"no request has met {kind!r}")
    return ", ".join(f"{hits} requests met {kind!r}" for kind, hits in distorted)


def _require_failed(evidence: Evidence, failed: FailedSave) -> None:
    start = next(s for s in evidence.history.starts if s.generation == failed.generation)
    told = {
        event["rank"]
        for event in evidence.events
        if event["event"] == "save_failed"
        and (event["generation"], event["step"]) == (failed.generation, failed.step)
    }
    if silent := set(range(start.world_size)) - told:
        raise Objection(f"ranks {sorted(silent)} do not know that step {failed.step} failed")
    if failed.step in _committed(evidence):
        raise Objection(f"step {failed.step} is said to have failed, and counts")
    if not failed.is_survived:
        raise Objection(f"training ended with the failed save of step {failed.step}")
    if max(_committed(evidence), default=0) < failed.step:
        raise Objection(f"nothing is committed after step {failed.step}")


def _due(evidence: Evidence) -> set[int]:
    return {checkpoint.id.step for checkpoint in evidence.reference.committed}


def _committed(evidence: Evidence) -> set[int]:
    return {checkpoint.id.step for checkpoint in evidence.history.committed}


JUDGES: Judges = {
    "every_save_committed": ("I11", every_save_committed),
    "failed_everywhere": ("I11", failed_everywhere),
    "requests_were_distorted": ("I8", requests_were_distorted),
}
