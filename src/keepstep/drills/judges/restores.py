"""Judges of restores: what ranks had in memory before their first step, entry by entry."""

from collections.abc import Mapping

from keepstep.drills.evidence import Evidence
from keepstep.drills.history import Start
from keepstep.drills.judges.digests import whole_digests
from keepstep.drills.judges.table import Judges
from keepstep.drills.remains import Checkpoint, TensorKey
from keepstep.drills.verdicts import NothingToExamine, Objection

_RANKS = "ranks."


def restored_exactly(evidence: Evidence) -> str:
    """After each resume every rank had in memory what the checkpoint holds: all of it."""
    entries = resumes = 0
    for start in evidence.history.starts:
        if start.resumed_from is None or start.first_step_ended is None:
            continue  # it died before its first step
        if set(start.states) != set(range(start.world_size)):
            raise Objection(f"generation {start.generation}: only {set(start.states)} told a state")
        source = evidence.history.checkpoint(start.resumed_from)
        if source is None or not source.digests:
            raise Objection(f"generation {start.generation} resumed from what cannot be read")
        resumes += 1
        entries += _compare_start(start, source)
    if not resumes:
        raise Objection("there was no resume whose state was recorded")
    return f"{entries} tensors and values of {resumes} resumes are those of their checkpoints"


def restored_exactly_where_known(evidence: Evidence) -> str:
    """The same, where checkpoints go: those of the uninterrupted run at the same step stand in."""
    by_step = {checkpoint.id.step: checkpoint for checkpoint in evidence.reference.committed}
    entries, known, unknown = 0, 0, 0
    for start in evidence.history.starts:
        if start.resumed_from is None or set(start.states) != set(range(start.world_size)):
            continue
        own = evidence.history.checkpoint(start.resumed_from)
        source = own if own and own.digests else by_step.get(start.resumed_from.step)
        if source is None or not source.digests:
            unknown += 1
            continue
        known += 1
        entries += _compare_start(start, source)
    if not known:
        raise NothingToExamine
    return (
        f"{entries} tensors and values of {known} resumes are those of their checkpoints "
        f"({unknown} checkpoints are gone)"
    )


def _compare_start(start: Start, source: Checkpoint) -> int:
    """Compare what all ranks hold; how much that is."""
    for rank, state in sorted(start.states.items()):
        if dict(state.progress) != dict(source.progress):
            names = sorted({*state.progress, *source.progress})
            name = next(n for n in names if state.progress.get(n) != source.progress.get(n))
            found, saved = state.progress.get(name), source.progress.get(name)
            raise _differs(start, rank, f"progress.{name}", found, saved)
    _compare_shards(start, source)
    entries = sum(_compare(start, source, rank) for rank in sorted(start.states))
    _require_all(start, source)
    return entries


def _require_all(start: Start, source: Checkpoint) -> None:
    """What was saved is in memory; what one rank holds whole, all do, its own state aside."""
    is_same_world = source.world_size == start.world_size  # else generators are derived anew
    saved = whole_digests(source)
    whole = {fqn for state in start.states.values() for fqn in state.whole}
    held = whole | {fqn for state in start.states.values() for fqn, _ in state.shards}
    for fqn in sorted(saved.keys() - held, key=_order):
        if is_same_world or not fqn.startswith(_RANKS):
            raise _differs(start, None, fqn, None, saved[fqn])
    for rank, state in sorted(start.states.items()):
        for fqn in sorted(whole - state.whole.keys()):
            if not fqn.startswith(_RANKS):
                raise _differs(start, rank, fqn, None, saved.get(fqn))


def _compare(start: Start, source: Checkpoint, rank: int) -> int:
    """Compare what one rank holds whole; how much that is."""
    state = start.states[rank]
    saved = whole_digests(source)
    is_same_world = source.world_size == start.world_size  # else generators are derived anew
    names = [fqn for fqn in state.whole if is_same_world or not fqn.startswith(_RANKS)]
    for fqn in sorted(names, key=_order):
        if state.whole[fqn] != saved.get(fqn):
            raise _differs(start, rank, fqn, state.whole[fqn], saved.get(fqn))
    return len(names) + len(state.shards)


def _compare_shards(start: Start, source: Checkpoint) -> None:
    """Parts in any cut: together they are the whole."""
    parts: dict[TensorKey, str] = {}
    for rank, state in start.states.items():
        for key, digest in state.shards.items():
            if parts.setdefault(key, digest) != digest:  # ranks of several replicas hold it
                raise _differs(start, rank, key[0], digest, parts[key])
    saved, live = whole_digests(source), whole_digests(parts)
    for fqn in sorted(live):
        if live[fqn] != saved.get(fqn):
            raise _guilty(start, source, fqn, parts) or _differs(
                start, None, fqn, live[fqn], saved.get(fqn)
            )


def _guilty(
    start: Start, source: Checkpoint, fqn: str, parts: Mapping[TensorKey, str]
) -> Objection | None:
    """Who holds a wrong part; told only if the tensor was saved in the same cut."""
    if {key for key in parts if key[0] == fqn} != {key for key in source.digests if key[0] == fqn}:
        return None
    for rank, state in sorted(start.states.items()):
        for key, digest in state.shards.items():
            if key[0] == fqn and digest != source.digests[key]:
                return _differs(start, rank, fqn, digest, source.digests[key])
    return None


def _differs(start: Start, rank: int | None, name: str, found: object, saved: object) -> Objection:
    step = start.resumed_from.step if start.resumed_from else 0
    who = "the ranks together" if rank is None else f"rank {rank}"
    return Objection(
        f"first difference at step {step}, {who}: {name} was restored as {found}, saved as {saved} "
        f"(generation {start.generation})"
    )


def _order(fqn: str) -> tuple[bool, str]:
    """What all ranks share first."""
    return fqn.startswith(_RANKS), fqn


JUDGES: Judges = {
    "restored_exactly": ("I5", restored_exactly),
    "restored_exactly_where_known": ("I5", restored_exactly_where_known),
    "restored_exactly_elsewhere": ("I6", restored_exactly),
}
