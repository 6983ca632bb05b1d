"""What to say of a history: pure functions, each named after what it finds true.

Every verdict names the promise it is about and the evidence it rests on.
"""

from collections.abc import Callable

from keepstep.drills.evidence import Evidence, Objection, Verdict
from keepstep.drills.judge_store import (
    damage_is_named,
    fell_back,
    intact,
    last_resume_is_newest,
    late_commit_is_void,
    nothing_added,
    nothing_lost,
    objects_untouched,
)
from keepstep.drills.judge_work import (
    close_losses,
    hops_keep_state,
    once_per_epoch,
    same_bits,
    same_order,
)


def judge(name: str, evidence: Evidence) -> Verdict:
    """The verdict of one judge."""
    invariant, examine = JUDGES[name]
    try:
        return Verdict(name, invariant, is_good=True, evidence=examine(evidence))
    except Objection as objection:
        return Verdict(name, invariant, is_good=False, evidence=str(objection))


def _endings(evidence: Evidence) -> str:
    """Every job ended by itself, as expected, and left no process behind."""
    if not evidence.results:
        raise Objection("no job was run")
    for result in evidence.results:
        if not result.is_as_expected:
            raise Objection(
                f"{result.log.stem} was to end {result.ending}, but torchrun ended with "
                f"{result.code}, workers with {list(result.worker_codes)}, "
                f"{result.orphans} processes left; see {result.log}"
            )
    codes = [r.worker_codes[0] for r in evidence.results if r.worker_codes]
    ended = ", ".join(str(result.ending) for result in evidence.results)
    return f"{ended}{f'; workers with {codes}' if codes else ''}; no process left"


def _interrupted(evidence: Evidence) -> str:
    """The failure took place: without it, equality would prove nothing."""
    starts = evidence.history.starts
    if len(starts) < 2:
        raise Objection("the job was never interrupted: its failpoint was not hit")
    return f"{len(starts)} generations"


JUDGES: dict[str, tuple[str, Callable[[Evidence], str]]] = {
    "endings": ("I8", _endings),
    "interrupted": ("I8", _interrupted),
    "nothing_lost": ("I1", nothing_lost),
    "intact": ("I3", intact),
    "same_order": ("I6", same_order),
    "once_per_epoch": ("I6", once_per_epoch),
    "same_bits": ("I5", same_bits),
    "hops_keep_state": ("I6", hops_keep_state),
    "close_losses": ("I6", close_losses),
    "damage_is_named": ("I4", damage_is_named),
    "fell_back": ("I4", fell_back),
    "objects_untouched": ("I4", objects_untouched),
    "nothing_added": ("I4", nothing_added),
    "late_commit_is_void": ("I2", late_commit_is_void),
    "last_resume_is_newest": ("I2", last_resume_is_newest),
}
"""By name: the promise, and the judge."""
