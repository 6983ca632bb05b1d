"""Judges on fabricated histories: an honest one passes, and each lie is found out."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from keepstep.commit.catalog import Status
from keepstep.commit.layout import CheckpointId
from keepstep.drills.evidence import Evidence
from keepstep.drills.history import FailedSave, History, LiveState, Start, Step
from keepstep.drills.inject import Damage
from keepstep.drills.judges import JUDGES, judge, lines, nodes, saves
from keepstep.drills.remains import Checkpoint
from keepstep.drills.results import Injection, Result
from keepstep.drills.scenario import DamageKind, Ending, Place

HERE = sorted(JUDGES.keys() - lines.JUDGES.keys() - nodes.JUDGES.keys() - saves.JUDGES.keys())
"""The others are lied to in test_drills_judge_nodes.py and test_drills_judge_saves.py."""

LAST_STEP = 8
BATCH = 4
HALVES = ("crc64:00000000000000f0", "crc64:000000000000000f")
DIGESTS = {
    **{("model.weight", (rank, 0)): HALVES[rank] for rank in (0, 1)},
    ("optim.lr", ()): "crc32c:01",
}
RNG = ("ranks.00000.rng.torch", (0,))
RNGS = ("crc64:{step:016x}", "crc64:1{step:015x}")


def id_of(step: int, generation: int) -> CheckpointId:
    return CheckpointId(step, generation, f"{generation:06x}{step:06x}")


def checkpoint(step: int, generation: int, status: Status = Status.COMMITTED) -> Checkpoint:
    other_rng = ("ranks.00001.rng.torch", (0,))
    digests = {**DIGESTS, RNG: RNGS[0].format(step=step), other_rng: RNGS[1].format(step=step)}
    return Checkpoint(
        id=id_of(step, generation),
        status=status,
        world_size=2,
        state_digest="crc64:00000000000000ff",
        digests=digests,
        tensors=frozenset(key for key in digests if digests[key].startswith("crc64")),
        progress={"samples": step * BATCH},
    )


def step(number: int, generation: int) -> Step:
    ids = tuple(range((number - 1) * BATCH, number * BATCH))
    return Step(
        number=number, generation=generation, ids=ids, losses=(1 / number, 1 / number + 0.01)
    )


def live(rank: int, step: int) -> LiveState:
    """What a rank has in memory that resumed well: its generator, and half of a tensor."""
    whole = {"optim.lr": "crc32c:01", f"ranks.{rank:05}.rng.torch": RNGS[rank].format(step=step)}
    shards = {("model.weight", (rank, 0)): HALVES[rank]}
    return LiveState(step, {"samples": step * BATCH}, whole, shards)


def start(generation: int, resumed_from: CheckpointId | None) -> Start:
    name = resumed_from.name if resumed_from else None
    return Start(
        generation=generation,
        world_size=2,
        resumed_from=resumed_from,
        reported={0: name, 1: name},
        live_digests=dict.fromkeys((0, 1), "crc64:00000000000000ff" if resumed_from else None),
        states={rank: live(rank, resumed_from.step if resumed_from else 0) for rank in (0, 1)},
        first_step_ended=1.0,
        ended=2.0,
    )


REFERENCE = History(
    steps=tuple(step(number, 1) for number in range(1, LAST_STEP + 1)),
    checkpoints=tuple(checkpoint(number, 1) for number in (2, 4, 6, 8)),
    starts=(start(1, None),),
)
RESUMED = History(
    steps=tuple(step(number, 1 if number <= 4 else 2) for number in range(1, LAST_STEP + 1)),
    checkpoints=(
        checkpoint(2, 1),
        checkpoint(4, 1),
        checkpoint(6, 1, Status.UNCOMMITTED),
        checkpoint(6, 2),
        checkpoint(8, 2),
    ),
    starts=(start(1, None), start(2, id_of(4, 1))),
    saved=frozenset({id_of(2, 1), id_of(4, 1), id_of(6, 2), id_of(8, 2)}),
)
ENDED = Result(
    ending=Ending.COMPLETE, code=0, worker_codes=(-9,), seconds=1.0, orphans=0, log=Path("log")
)
KILLED = Evidence(history=RESUMED, reference=REFERENCE, results=(ENDED,))

DAMAGE = Damage(id_of(6, 1), Place.SHARD, DamageKind.FLIP, id_of(6, 1).key("__0_0.distcp"), 3)
DAMAGED = replace(
    KILLED,
    history=replace(
        RESUMED,
        checkpoints=(
            checkpoint(2, 1),
            checkpoint(4, 1),
            replace(checkpoint(6, 1, Status.QUARANTINED), reason=str(DAMAGE)),
            checkpoint(6, 2),
            checkpoint(8, 2),
        ),
    ),
    damages=(DAMAGE,),
    objects_before={"steps/a": "1", "ledger/a": "1"},
    objects_after={"steps/a": "1", "ledger/a": "2", "quarantine/a": "1"},
)
FROZEN = replace(
    KILLED,
    history=replace(
        RESUMED,
        checkpoints=(
            checkpoint(2, 1),
            checkpoint(4, 1),
            checkpoint(6, 1, Status.SUPERSEDED),
            checkpoint(6, 2),
            checkpoint(8, 2),
        ),
        starts=(*RESUMED.starts, start(3, id_of(8, 2))),
    ),
)
KILL = Injection(time=1.0, kind="kill", target="rank 1")
SOAKED = replace(
    DAMAGED,
    history=replace(
        DAMAGED.history,
        saved=frozenset({id_of(2, 1), id_of(4, 1), id_of(6, 1), id_of(6, 2)}),
        failed_saves=(FailedSave(1, 3, is_survived=True),),
    ),
    injections=(KILL, replace(KILL, time=5.0)),
    events=tuple(
        {"event": "generation", "generation": number, "rank": 0, "time": time}
        for number, time in ((1, 0.5), (2, 2.0), (3, 6.0))
    ),
    notes={
        "launches": [{"end": "preempt", "code": 85, "orphans": 0, "log": "job-1.log"}],
        "left_over": [],
        "kept": {id_of(8, 2).name: None},
        "stock": {"is_read": True, "said": "stock DCP read it"},
    },
)
HONEST: Mapping[str, Evidence] = dict.fromkeys(HERE, KILLED) | {
    "damage_is_named": DAMAGED,
    "fell_back": DAMAGED,
    "objects_untouched": DAMAGED,
    "nothing_added": DAMAGED,
    "late_commit_is_void": FROZEN,
    "last_resume_is_newest": FROZEN,
    "launchers_ended": SOAKED,
    "nothing_lost_but_damage": SOAKED,
    "never_back": SOAKED,
    "damage_was_named": SOAKED,
    "all_kept": SOAKED,
    "nothing_left_over": SOAKED,
    "stock_reads_it": SOAKED,
    "failed_saves_are_survived": SOAKED,
}


def with_history(evidence: Evidence, **changes: object) -> Evidence:
    return replace(evidence, history=replace(evidence.history, **changes))


def with_step(evidence: Evidence, number: int, **changes: object) -> Evidence:
    steps = tuple(
        replace(step, **changes) if step.number == number else step
        for step in evidence.history.steps
    )
    return with_history(evidence, steps=steps)


def with_checkpoint(evidence: Evidence, wanted: CheckpointId, **changes: object) -> Evidence:
    checkpoints = tuple(
        replace(each, **changes) if each.id == wanted else each
        for each in evidence.history.checkpoints
    )
    return with_history(evidence, checkpoints=checkpoints)


def with_last_start(evidence: Evidence, **changes: object) -> Evidence:
    *earlier, last = evidence.history.starts
    return with_history(evidence, starts=(*earlier, replace(last, **changes)))


def with_digest(evidence: Evidence, key: tuple[str, tuple[int, ...]]) -> Evidence:
    digests = {**checkpoint(8, 2).digests, key: "crc64:0000000000000bad"}
    return with_checkpoint(evidence, id_of(8, 2), digests=digests)


def with_result(evidence: Evidence, **changes: object) -> Evidence:
    return replace(evidence, results=(replace(ENDED, **changes),))


def with_state(evidence: Evidence, rank: int, **changes: object) -> Evidence:
    states = evidence.history.starts[-1].states
    return with_last_start(evidence, states={**states, rank: replace(states[rank], **changes)})


def with_notes(evidence: Evidence, **changes: object) -> Evidence:
    return replace(evidence, notes={**evidence.notes, **changes})


def without_shards(evidence: Evidence) -> Evidence:
    return with_state(with_state(evidence, 0, shards={}), 1, shards={})


def wrong_restores(name: str) -> list[tuple[str, str, Callable[[Evidence], Evidence]]]:
    """What each judge of restores must find out."""
    half, weight = ("model.weight", (1, 0)), "crc64:0000000000000001"
    rng = {**live(1, 4).whole, "ranks.00001.rng.torch": "crc64:0"}
    no_rng, no_lr = ({fqn: live(1, 4).whole[fqn]} for fqn in live(1, 4).whole)
    more = {"samples": 16, "epoch": 1}
    return [
        (name, "rank 1: progress.samples", lambda e: with_state(e, 1, progress={"samples": 17})),
        (name, "rank 1: ranks.00001.rng.torch", lambda e: with_state(e, 1, whole=rng)),
        (name, "rank 0: optim.lr", lambda e: with_state(e, 0, whole={"optim.lr": "crc32c:02"})),
        (name, "rank 1: model.weight", lambda e: with_state(e, 1, shards={half: weight})),
        (name, "together: model.weight", lambda e: with_state(e, 1, shards={})),
        (name, "together: model.weight was restored as None", without_shards),
        (name, "together: ranks.00001.rng.torch", lambda e: with_state(e, 1, whole=no_rng)),
        (name, "rank 1: optim.lr was restored as None", lambda e: with_state(e, 1, whole=no_lr)),
        (name, "rank 1: progress.epoch", lambda e: with_state(e, 1, progress=more)),
    ]


LIES: list[tuple[str, str, Callable[[Evidence], Evidence]]] = [
    ("endings", "launcher ended with 1", lambda e: with_result(e, code=1)),
    ("endings", "2 processes left", lambda e: with_result(e, orphans=2)),
    ("endings", "workers with", lambda e: with_result(e, ending=Ending.FENCED, code=1)),
    ("interrupted", "never interrupted", lambda e: with_history(e, starts=e.history.starts[:1])),
    ("interrupted", "2 ranks were to be killed, and 0", lambda e: replace(e, planned_kills=2)),
    (
        "nothing_lost",
        "step 6 (generation 1",
        lambda e: with_checkpoint(e, id_of(6, 1), status=Status.SUPERSEDED),
    ),
    ("nothing_lost", "is gone", lambda e: with_history(e, checkpoints=e.history.checkpoints[1:])),
    (
        "nothing_lost",
        "is uncommitted",
        lambda e: with_checkpoint(e, id_of(8, 2), status=Status.UNCOMMITTED),
    ),
    (
        "nothing_lost",
        "though step 4",
        lambda e: with_last_start(e, resumed_from=id_of(2, 1)),
    ),
    (
        "intact",
        "block 0: checksum mismatch",
        lambda e: with_checkpoint(e, id_of(6, 2), damages=("x block 0: checksum mismatch",)),
    ),
    ("intact", "nothing is committed", lambda e: with_history(e, checkpoints=())),
    ("same_order", "step 5", lambda e: with_step(e, 5, ids=(17, 16, 18, 19))),
    ("same_order", "once each", lambda e: with_history(e, steps=e.history.steps[:-1])),
    (
        "same_order",
        "once each",
        lambda e: with_history(e, steps=(*e.history.steps[:5], *e.history.steps[4:])),
    ),
    ("same_order", "once each", lambda e: with_history(e, steps=())),
    ("once_per_epoch", "sample 3 was used 2", lambda e: with_step(e, 5, ids=(3, 17, 18, 19))),
    (
        "once_per_epoch",
        "sample 16 was left out",
        lambda e: with_step(replace(e, samples_per_epoch=32), 5, ids=(99, 17, 18, 19)),
    ),
    (
        "once_per_epoch",
        "no resume lay within",
        lambda e: replace(e, samples_per_epoch=16),
    ),
    ("same_bits", "loss of step 5, slot 1", lambda e: with_step(e, 5, losses=(0.2, 0.2))),
    ("same_bits", "has 1 slots", lambda e: with_step(e, 5, losses=(0.2,))),
    ("same_bits", "model.weight[0, 0]", lambda e: with_digest(e, ("model.weight", (0, 0)))),
    ("same_bits", "ranks.00000.rng", lambda e: with_digest(e, RNG)),
    ("same_bits", "optim.more", lambda e: with_digest(e, ("optim.more", (0,)))),
    (
        "same_bits",
        "the last checkpoint is step 6",
        lambda e: with_history(e, checkpoints=e.history.checkpoints[:-1]),
    ),
    (
        "hops_keep_state",
        "tensors add up to",
        lambda e: with_checkpoint(e, id_of(4, 1), state_digest="crc64:0000000000000001"),
    ),
    ("hops_keep_state", "only {0}", lambda e: with_last_start(e, reported={0: None})),
    (
        "hops_keep_state",
        "restored {1: 'crc64:0'}",
        lambda e: with_last_start(e, live_digests={0: "crc64:00000000000000ff", 1: "crc64:0"}),
    ),
    (
        "hops_keep_state",
        "ranks {1}",
        lambda e: with_last_start(e, reported={0: id_of(4, 1).name, 1: id_of(2, 1).name}),
    ),
    ("hops_keep_state", "nothing that is there", lambda e: with_history(e, checkpoints=())),
    ("close_losses", "loss of step 5", lambda e: with_step(e, 5, losses=(0.2, 0.2))),
    (
        "damage_is_named",
        "was not noticed",
        lambda e: with_checkpoint(e, id_of(6, 1), status=Status.COMMITTED),
    ),
    (
        "damage_is_named",
        "does not name the file",
        lambda e: with_checkpoint(e, id_of(6, 1), reason="something is wrong"),
    ),
    (
        "damage_is_named",
        "does not name the block",
        lambda e: with_checkpoint(e, id_of(6, 1), reason=f"{DAMAGE.key} block 4"),
    ),
    ("fell_back", "not from step 4", lambda e: with_last_start(e, resumed_from=id_of(2, 1))),
    ("fell_back", "ranks disagree", lambda e: with_last_start(e, reported={0: id_of(4, 1).name})),
    (
        "objects_untouched",
        "steps/a was changed",
        lambda e: replace(e, objects_after={"steps/a": "2"}),
    ),
    ("objects_untouched", "steps/a was removed", lambda e: replace(e, objects_after={})),
    (
        "nothing_added",
        "generations/000002.json was written",
        lambda e: replace(e, objects_after={"generations/000002.json": "1"}),
    ),
    (
        "late_commit_is_void",
        "is committed",
        lambda e: with_checkpoint(e, id_of(6, 1), status=Status.COMMITTED),
    ),
    (
        "late_commit_is_void",
        "never tried",
        lambda e: with_history(e, checkpoints=e.history.checkpoints[:2]),
    ),
    (
        "last_resume_is_newest",
        "not from step 8",
        lambda e: with_last_start(e, resumed_from=id_of(6, 1)),
    ),
    *wrong_restores("restored_exactly"),
    *wrong_restores("restored_exactly_elsewhere"),
    *wrong_restores("restored_exactly_where_known"),
    ("restored_exactly", "only {0} told", lambda e: with_last_start(e, states={0: live(0, 4)})),
    (
        "launchers_ended",
        "ended with 1",
        lambda e: with_notes(
            e, launches=[{"end": "preempt", "code": 1, "orphans": 0, "log": "job-1.log"}]
        ),
    ),
    (
        "nothing_lost_but_damage",
        "resumed from step 2",
        lambda e: with_last_start(e, resumed_from=id_of(2, 1)),
    ),
    (
        "never_back",
        "went back from step 4 to 2",
        lambda e: with_history(
            e,
            starts=(
                start(1, None),
                start(2, id_of(4, 1)),
                start(3, id_of(2, 1)),
            ),
        ),
    ),
    (
        "damage_was_named",
        "was not noticed",
        lambda e: with_checkpoint(e, id_of(6, 1), status=Status.COMMITTED),
    ),
    ("all_kept", "no longer counts", lambda e: with_notes(e, kept={"a": "a no longer counts"})),
    ("all_kept", "nothing to keep", lambda e: with_notes(e, kept={})),
    ("nothing_left_over", "steps/a", lambda e: with_notes(e, left_over=["steps/a"])),
    (
        "stock_reads_it",
        "no such key",
        lambda e: with_notes(e, stock={"is_read": False, "said": "no such key"}),
    ),
    (
        "failed_saves_are_survived",
        "end generation 2,",
        lambda e: replace(e, injections=(KILL, replace(KILL, time=1.5))),
    ),
]


@pytest.mark.parametrize("name", HERE)
def test_judge_accepts_an_honest_history(name: str) -> None:
    verdict = judge(name, HONEST[name])
    assert verdict is not None
    assert verdict.is_good, verdict.evidence
    assert verdict.invariant.startswith("I")
    assert verdict.evidence


@pytest.mark.parametrize(
    ("name", "objection", "tamper"), LIES, ids=[f"{name}: {text}" for name, text, _ in LIES]
)
def test_judge_finds_out_a_lie(
    name: str, objection: str, tamper: Callable[[Evidence], Evidence]
) -> None:
    verdict = judge(name, tamper(HONEST[name]))
    assert verdict is not None
    assert not verdict.is_good
    assert objection in verdict.evidence


@pytest.mark.parametrize("name", JUDGES)
def test_nothing_is_good_without_evidence(name: str) -> None:
    nothing = History(steps=(), checkpoints=(), starts=())
    verdict = judge(name, Evidence(history=nothing, reference=nothing))
    assert verdict is None or not verdict.is_good


def of_epochs(evidence: Evidence, size: int) -> Evidence:
    """The same history, over and over the same samples, as is its reference."""

    def cut(history: History) -> History:
        steps = [replace(one, ids=tuple(id % size for id in one.ids)) for one in history.steps]
        return replace(history, steps=tuple(steps))

    return replace(evidence, history=cut(evidence.history), reference=cut(evidence.reference))


def test_where_an_epoch_ends_is_seen_in_the_reference() -> None:
    honest = of_epochs(HONEST["once_per_epoch"], 10)
    verdict = judge("once_per_epoch", honest)
    assert verdict is not None
    assert verdict.is_good, verdict.evidence
    assert "32 samples, each once in its epoch; 3 complete epochs" in verdict.evidence
    repeated = replace(honest, reference=with_step(honest, 1, ids=(0, 1, 0, 2)).history)
    verdict = judge("once_per_epoch", replace(repeated, history=repeated.reference))
    assert verdict is not None
    assert not verdict.is_good


def test_every_judge_is_lied_to() -> None:
    assert {name for name, _, _ in LIES} == set(HERE)


def test_any_block_behind_the_cut_names_a_truncated_file() -> None:
    cut = replace(DAMAGE, kind=DamageKind.TRUNCATE, block=2)
    named = with_checkpoint(DAMAGED, DAMAGE.checkpoint, reason=f"{DAMAGE.key} block 3: cut short")
    verdict = judge("damage_is_named", replace(named, damages=(cut,)))
    assert verdict is not None
    assert verdict.is_good


def test_a_deleted_manifest_of_which_nothing_else_knew_cannot_be_missed() -> None:
    deleted = Damage(
        id_of(8, 1), Place.MANIFEST, DamageKind.DELETE, id_of(8, 1).key("manifest.json"), None
    )
    gone = replace(SOAKED, damages=(DAMAGE, deleted))
    verdict = judge("damage_was_named", gone)
    assert verdict is not None
    assert verdict.is_good, verdict.evidence
    assert "1 deleted commits" in verdict.evidence
    known = with_history(gone, saved=gone.history.saved | {deleted.checkpoint})
    missed = judge("damage_was_named", known)
    assert missed is not None
    assert not missed.is_good
    assert judge("damage_was_named", replace(gone, damages=(deleted,))) is None


def test_what_retention_removed_is_not_lost() -> None:
    gone = with_history(KILLED, checkpoints=KILLED.history.checkpoints[1:])
    verdict = judge("nothing_lost", with_history(gone, pruned=frozenset({id_of(2, 1)})))
    assert verdict is not None
    assert verdict.is_good, verdict.evidence
