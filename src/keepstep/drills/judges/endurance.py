"""Judges of a long job under many faults."""

from dataclasses import replace
from itertools import pairwise

from keepstep.commit.layout import CheckpointId
from keepstep.drills.evidence import Evidence
from keepstep.drills.judges.store import damage_is_named
from keepstep.drills.judges.table import Judges
from keepstep.drills.scenario import DamageKind, Place
from keepstep.drills.verdicts import NothingToExamine, Objection
from keepstep.errors import ExitCode

_CODES = {
    "preempt": (ExitCode.PREEMPTED, ExitCode.PREEMPTED_UNSAVED),
    "kill-agent": (-9,),
    "damage": (-9,),
}


_FATAL = ("kill", "stop", "preempt", "kill-agent")


def launchers_ended(evidence: Evidence) -> str:
    """Each launcher ended as it was made to, and left no process behind."""
    launches = evidence.notes.get("launches")
    if not launches:
        raise Objection("no launcher was started")
    for launch in launches:
        if launch["code"] not in _CODES[launch["end"]] or launch["orphans"]:
            raise Objection(
                f"{launch['log']} was to end by {launch['end']}, but ended with {launch['code']} "
                f"and left {launch['orphans']} processes"
            )
    return f"{len(launches)} launchers ended by {', '.join(sorted({e['end'] for e in launches}))}"


def nothing_lost_but_damage(evidence: Evidence) -> str:
    """Each start resumed from the newest step that is known to be committed, damage aside."""
    damaged = {damage.checkpoint for damage in evidence.damages}
    resumes = 0
    for start in evidence.history.starts:
        saved = evidence.history.saved_before(start.generation) - damaged
        newest = max(saved, default=None)
        resumed = start.resumed_from
        resumes += resumed is not None
        if newest is not None and (resumed is None or resumed.step < newest.step):
            raise Objection(
                f"generation {start.generation} resumed from {resumed}, though {newest} was "
                "committed"
            )
    if not resumes:
        raise Objection("there was no resume")
    return f"{resumes} resumes, each from the newest commit"


def never_back(evidence: Evidence) -> str:
    """Steps that were once resumed from are not lost again, damage aside."""
    damaged = {damage.checkpoint.step for damage in evidence.damages}
    if len(evidence.history.starts) < 2:
        raise Objection("the job was never interrupted")
    for before, after in pairwise(evidence.history.starts):
        then, now = _step(before.resumed_from), _step(after.resumed_from)
        if now < then and not any(now < step <= then for step in damaged):
            raise Objection(f"generation {after.generation} went back from step {then} to {now}")
    return f"{len(evidence.history.starts)} generations, none behind its predecessor"


def damage_was_named(evidence: Evidence) -> str:
    """Each damaged checkpoint is quarantined for a reason that names file and block.

    Unless its manifest was deleted and nothing else knew of the commit, as when all ranks died
    within moments of it: then it is an attempt that never ended, whoever looks.
    """
    known = evidence.history.saved | {start.resumed_from for start in evidence.history.starts}
    nameable = tuple(
        damage
        for damage in evidence.damages
        if damage.checkpoint in known
        or (damage.place, damage.kind) != (Place.MANIFEST, DamageKind.DELETE)
    )
    if not nameable:
        raise NothingToExamine
    named = damage_is_named(replace(evidence, damages=nameable))
    unknown = len(evidence.damages) - len(nameable)
    return f"{named}; {unknown} deleted commits of which nothing else knew" if unknown else named


def all_kept(evidence: Evidence) -> str:
    """After prune and gc what they must keep still counts, and is whole."""
    kept = evidence.notes.get("kept")
    if not kept:
        raise Objection("there was nothing to keep")
    for name, damage in kept.items():
        if damage is not None:
            raise Objection(f"{name} was to be kept: {damage}")
    return f"the newest {len(kept)} checkpoints count and are whole"


def nothing_left_over(evidence: Evidence) -> str:
    """After prune and gc there is nothing that no checkpoint refers to."""
    left = evidence.notes.get("left_over")
    if left is None:
        raise Objection("it was not cleaned up")
    if left:
        raise Objection(f"{len(left)} objects belong to nothing: {left[0]}, ...")
    return "no unreferenced object, upload or file after prune and gc"


def stock_reads_it(evidence: Evidence) -> str:
    """Stock DCP has read the last checkpoint."""
    told = evidence.notes.get("stock")
    if told is None:
        raise NothingToExamine
    if not told["is_read"]:
        raise Objection(told["said"])
    return str(told["said"])


def failed_saves_are_survived(evidence: Evidence) -> str:
    """No incarnation ended but by a fault that was meant to end it; failed saves are not."""
    failed = evidence.history.failed_saves
    if not failed:
        raise NothingToExamine
    ends = [injection.time for injection in evidence.injections if injection.kind in _FATAL]
    for (generation, began), (_, over) in pairwise(_begun(evidence)):
        if not any(began < time < over for time in ends):
            raise Objection(f"no fault was to end generation {generation}, but it ended")
    survived = sum(each.is_survived for each in failed)
    return (
        f"{len(failed)} saves failed; training went on after {survived}, and the others were cut "
        "short by the next fault"
    )


def _begun(evidence: Evidence) -> list[tuple[int, float]]:
    """Generations that lived long enough to say so, ascending, and when they began."""
    begun: dict[int, float] = {}
    for event in evidence.events:
        number = event["generation"]
        begun[number] = min(event["time"], begun.get(number, event["time"]))
    return sorted(begun.items())


def _step(checkpoint: CheckpointId | None) -> int:
    return checkpoint.step if checkpoint else 0


JUDGES: Judges = {
    "launchers_ended": ("I8", launchers_ended),
    "nothing_lost_but_damage": ("I1", nothing_lost_but_damage),
    "never_back": ("I2", never_back),
    "damage_was_named": ("I4", damage_was_named),
    "all_kept": ("I7", all_kept),
    "nothing_left_over": ("I7", nothing_left_over),
    "stock_reads_it": ("I9", stock_reads_it),
    "failed_saves_are_survived": ("I11", failed_saves_are_survived),
}
