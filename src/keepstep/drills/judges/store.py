"""Judges of what is on storage: what counts, what is whole, what was set aside or refused."""

import re

from keepstep.commit.catalog import Status
from keepstep.commit.layout import LEDGER, QUARANTINE
from keepstep.drills.evidence import Evidence
from keepstep.drills.inject import Damage
from keepstep.drills.judges.resumes import require_newest
from keepstep.drills.judges.table import Judges
from keepstep.drills.scenario import DamageKind
from keepstep.drills.verdicts import Objection

_BLOCK = re.compile(r"block (\d+)")


def nothing_lost(evidence: Evidence) -> str:
    """What ledgers say was committed still is; each start resumed from the newest of it."""
    history = evidence.history
    for checkpoint in history.checkpoints:
        if checkpoint.status in (Status.SUPERSEDED, Status.QUARANTINED):
            raise Objection(f"{checkpoint.id} was committed, but is {checkpoint.status}")
    for id in sorted(history.saved - history.pruned):
        found = history.checkpoint(id)
        if found is None or found.status is Status.UNCOMMITTED:
            raise Objection(f"{id} was committed, but is {found.status if found else 'gone'}")
    for start in history.starts:
        require_newest(history, start)
    resumed = [s.resumed_from.step for s in evidence.history.starts if s.resumed_from]
    if not resumed:
        raise Objection("there was no resume")
    return f"resumed from {', '.join(map(str, resumed))}, the newest commits"


def intact(evidence: Evidence) -> str:
    """Every checkpoint that counts is whole."""
    committed = evidence.history.committed
    for checkpoint in committed:
        if checkpoint.damages:
            raise Objection(f"{checkpoint.id}: {checkpoint.damages[0]}")
    if not committed:
        raise Objection("nothing is committed")
    return f"every byte of {len(committed)} checkpoints verified"


def damage_is_named(evidence: Evidence) -> str:
    """Each damaged checkpoint is quarantined for a reason that names file and block."""
    if not evidence.damages:
        raise Objection("nothing was damaged")
    for damage in evidence.damages:
        checkpoint = evidence.history.checkpoint(damage.checkpoint)
        if checkpoint is None or checkpoint.status is not Status.QUARANTINED:
            status = checkpoint.status if checkpoint else "gone"
            raise Objection(f"{damage} was not noticed: {damage.checkpoint} is {status}")
        reason = checkpoint.reason or ""
        if damage.key not in reason:
            raise Objection(f"{damage}: the reason does not name the file: {reason}")
        if not _names_block(reason, damage):
            raise Objection(f"{damage}: the reason does not name the block: {reason}")
    return f"{len(evidence.damages)} damaged and quarantined, file and block named"


def fell_back(evidence: Evidence) -> str:
    """All ranks resumed from the newest checkpoint that was not damaged."""
    damaged = {damage.checkpoint for damage in evidence.damages}
    if not evidence.history.starts:
        raise Objection("no job has started")
    last = evidence.history.starts[-1]
    whole = [
        checkpoint.id
        for checkpoint in evidence.history.checkpoints
        if checkpoint.id.generation < last.generation
        and checkpoint.id not in damaged
        and checkpoint.status is not Status.UNCOMMITTED
    ]
    expected = max(whole, default=None)
    if last.resumed_from is None or last.resumed_from != expected:
        raise Objection(f"resumed from {last.resumed_from}, not from {expected}")
    if last.reported != dict.fromkeys(range(last.world_size), last.resumed_from.name):
        raise Objection(f"ranks disagree on the resume: {dict(last.reported)}")
    return f"all {last.world_size} ranks fell back to step {last.resumed_from.step}"


def objects_untouched(evidence: Evidence) -> str:
    """No object that was there has been changed or removed, the ledgers aside."""
    if not evidence.objects_before:
        raise Objection("there was nothing to leave alone")
    for key, digest in evidence.objects_before.items():
        if evidence.objects_after.get(key) != digest and not key.startswith(LEDGER):
            raise Objection(
                f"{key} was {'changed' if key in evidence.objects_after else 'removed'}"
            )
    return f"{len(evidence.objects_before)} objects as before"


def nothing_added(evidence: Evidence) -> str:
    """A refused start leaves marks and ledgers, nothing else."""
    if not evidence.objects_after:
        raise Objection("nothing is left")
    added = evidence.objects_after.keys() - evidence.objects_before.keys()
    for key in sorted(added):
        if not key.startswith((LEDGER, QUARANTINE)):
            raise Objection(f"{key} was written by a job that should have refused to start")
    return f"{len(added)} marks"


def late_commit_is_void(evidence: Evidence) -> str:
    """What the first generation committed after its successor's start does not count."""
    starts = evidence.history.starts
    if len(starts) < 2 or starts[1].resumed_from is None:
        raise Objection("there is no successor that resumed from the first job's checkpoint")
    first, last_step = starts[0].generation, starts[1].resumed_from.step
    late = [
        c
        for c in evidence.history.checkpoints
        if c.id.generation == first and c.id.step > last_step
    ]
    if not late:
        raise Objection("the first job never tried to commit late")
    for checkpoint in late:
        if checkpoint.status not in (Status.SUPERSEDED, Status.UNCOMMITTED):
            raise Objection(f"the late commit of {checkpoint.id} is {checkpoint.status}")
    return ", ".join(f"step {c.id.step} of generation {first} is {c.status}" for c in late)


def last_resume_is_newest(evidence: Evidence) -> str:
    """The last start went on from the successor's last commit."""
    if len(evidence.history.starts) < 2:
        raise Objection("there was only one start")
    *_, successor, last = evidence.history.starts
    newest = max(
        (c.id for c in evidence.history.committed if c.id.generation == successor.generation),
        default=None,
    )
    if newest is None or last.resumed_from != newest:
        raise Objection(f"the last start resumed from {last.resumed_from}, not from {newest}")
    return f"generation {last.generation} resumed from {newest}"


def _names_block(reason: str, damage: Damage) -> bool:
    """Where the end is missing, any block from the first damaged one on is right."""
    if damage.block is None:
        return True
    named = [int(number) for number in _BLOCK.findall(reason)]
    if damage.kind is DamageKind.TRUNCATE:
        return any(number >= damage.block for number in named)
    return damage.block in named


JUDGES: Judges = {
    "damage_is_named": ("I4", damage_is_named),
    "fell_back": ("I4", fell_back),
    "intact": ("I3", intact),
    "last_resume_is_newest": ("I2", last_resume_is_newest),
    "late_commit_is_void": ("I2", late_commit_is_void),
    "nothing_added": ("I4", nothing_added),
    "nothing_lost": ("I1", nothing_lost),
    "objects_untouched": ("I4", objects_untouched),
}
