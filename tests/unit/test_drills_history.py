"""Damaging a run on disk, and reading what a run has left."""

import json
from pathlib import Path

import pytest
from test_ledger import MemoryLog

from keepstep.commit.blocks import BLOCK_BYTES, fold_checksums, run_checksums, sha256_digest
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.index import Frame, RankIndex
from keepstep.commit.layout import (
    MANIFEST,
    METADATA,
    CheckpointId,
    index_filename,
    ledger_key,
    new_attempt,
    shard_filename,
)
from keepstep.commit.lineage import claim_generation
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.commit.protocol import publish
from keepstep.commit.verify import verify_checkpoint
from keepstep.drills.history import History, tell
from keepstep.drills.inject import fingerprints, spoil
from keepstep.drills.remains import read_remains
from keepstep.drills.scenario import DamageKind, Place, Spoil
from keepstep.drills.soak.cleaning import kept
from keepstep.errors import ConfigError
from keepstep.observability.ledger import Ledger
from keepstep.storage.local import LocalStorage

WORLD_SIZE = 2
SHARD_BYTES = BLOCK_BYTES + 1000


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """A run as two ranks leave it: killed in step 5, resumed from step 4, through step 6."""
    storage = LocalStorage(tmp_path / "run")
    run = Catalog(storage).open_run()
    claim_generation(storage, newest_seen=0, world_size=WORLD_SIZE, resumed_from=None)
    commit(storage, run, step=2, generation=1)
    source = commit(storage, run, step=4, generation=1)
    work(storage, generation=1, first=1, last=5, resumed_from=None, began=100.0)
    claim_generation(storage, newest_seen=1, world_size=WORLD_SIZE, resumed_from=source)
    commit(storage, run, step=6, generation=2)
    work(storage, generation=2, first=5, last=6, resumed_from=source, began=200.0)
    return storage


def read_history(storage: LocalStorage) -> History:
    return tell(read_remains(storage))


def commit(storage: LocalStorage, run: str, *, step: int, generation: int) -> CheckpointId:
    attempt = CheckpointId(step, generation, new_attempt())
    records = [write(storage, attempt, METADATA, b"stock")]
    for rank in range(WORLD_SIZE):
        data = (bytes([step, rank]) * SHARD_BYTES)[:SHARD_BYTES]
        file = shard_filename(rank, 0)
        blocks = fold_checksums(file, [run_checksums(0, data)])
        write(storage, attempt, file, data)
        records.append(ObjectRecord(file, blocks.size_bytes, blocks.digest))
        frame = Frame(
            fqn=f"weight.{rank}",
            path=("weight", rank),
            kind="tensor",
            file=file,
            offset=0,
            length=SHARD_BYTES,
            data_offset=0,
            data_bytes=SHARD_BYTES,
            digest=f"crc64:{step:016x}",
        )
        index = RankIndex(rank=rank, frames=(frame,), files=(blocks,)).to_bytes()
        records.append(write(storage, attempt, index_filename(rank), index))
    manifest = Manifest(
        run=run,
        step=step,
        generation=generation,
        attempt=attempt.attempt,
        created="2026-01-01T00:00:00+00:00",
        keepstep_version="0",
        torch_version="0",
        world_size=WORLD_SIZE,
        objects=tuple(records),
    )
    publish(storage, manifest)
    return attempt


def write(storage: LocalStorage, attempt: CheckpointId, file: str, data: bytes) -> ObjectRecord:
    storage.put(attempt.key(file), data)
    return ObjectRecord(file, len(data), sha256_digest(data))


def work(
    storage: LocalStorage,
    *,
    generation: int,
    first: int,
    last: int,
    resumed_from: CheckpointId | None,
    began: float,
) -> None:
    """Ledgers of steps ``first`` to ``last``, one second each; rank 1 dies in the last line."""
    for rank in range(WORLD_SIZE):
        log = MemoryLog()
        ledger = Ledger(log, generation=generation, rank=rank)
        name = resumed_from.name if resumed_from else None
        times = [began]
        ledger.record("generation", resumed_from=name)
        for step in range(first, last + 1):
            ids = [10 * step + 2 * rank, 10 * step + 2 * rank + 1]
            ledger.record("samples", step=step, ids=ids, losses_hex=[float(rank).hex()])
            ledger.record("step", step=step)
            times += [began + step - first + 1] * 2
        dated = (
            json.dumps({**json.loads(line), "time": time}) + "\n"
            for line, time in zip(log.appended, times, strict=True)
        )
        torn = '{"event":"sam' if rank == 1 else ""
        with storage.open_appender(ledger_key(generation, rank)) as opened:
            opened.append(("".join(dated) + torn).encode())


def test_only_executions_on_the_valid_line_count(storage: LocalStorage) -> None:
    steps = read_history(storage).steps
    assert [(step.number, step.generation) for step in steps] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 2),
        (6, 2),
    ]


def test_samples_and_losses_are_merged_in_the_order_of_slots(storage: LocalStorage) -> None:
    step = read_history(storage).steps[4]
    assert step.ids == (50, 51, 52, 53)
    assert step.losses == (0.0, 1.0)


def test_starts_tell_what_each_rank_resumed_from(storage: LocalStorage) -> None:
    first, second = read_history(storage).starts
    assert first.reported == {0: None, 1: None}
    assert second.resumed_from is not None
    assert second.reported == dict.fromkeys((0, 1), second.resumed_from.name)


def test_recovery_lasts_until_the_first_new_step(storage: LocalStorage) -> None:
    assert read_history(storage).recoveries_seconds == pytest.approx((201.0 - 105.0,))


def test_checkpoints_carry_the_digests_of_all_ranks(storage: LocalStorage) -> None:
    last = read_history(storage).last
    assert last is not None
    assert last.id.step == 6
    assert last.digests == {
        ("weight.0", ()): "crc64:0000000000000006",
        ("weight.1", ()): "crc64:0000000000000006",
    }


@pytest.mark.parametrize("kind", DamageKind)
@pytest.mark.parametrize("place", Place)
@pytest.mark.parametrize("seed", range(3))
def test_damage_changes_one_object_and_is_seen_where_it_is_said_to_be(
    storage: LocalStorage, kind: DamageKind, place: Place, seed: int
) -> None:
    before = fingerprints(storage)
    (damage,) = spoil(storage, Spoil(kind, (place,)), seed=str(seed))
    after = fingerprints(storage)
    assert [key for key in before if after.get(key) != before[key]] == [damage.key]
    assert (damage.key in after) == (kind is not DamageKind.DELETE)
    assert damage.checkpoint.step == 6
    found = verify_checkpoint(storage, damage.checkpoint)
    if place is Place.MANIFEST and kind is DamageKind.DELETE:
        assert damage.checkpoint not in Catalog(storage).candidates()
    assert any(each.key == damage.key for each in found)
    if damage.block is not None:
        assert damage.block in {each.block for each in found}


def test_more_damage_than_there_are_checkpoints_is_refused(storage: LocalStorage) -> None:
    before = fingerprints(storage)
    with pytest.raises(ConfigError, match="has 3 checkpoints to damage, and the drill wants 4"):
        spoil(storage, Spoil(DamageKind.FLIP, (Place.SHARD,) * 4), seed="0")
    assert fingerprints(storage) == before


def test_what_prune_must_keep_is_missed_and_damage_to_it_is_seen(storage: LocalStorage) -> None:
    third, second, first = Catalog(storage).candidates()
    storage.delete([second.key(MANIFEST)])
    spoil(storage, Spoil(DamageKind.FLIP, (Place.SHARD,)), seed="0")
    found = kept(storage, [first, second, third])
    assert found[first.name] is None
    assert "no longer counts" in (found[second.name] or "")
    assert "checksum mismatch" in (found[third.name] or "")


def test_damage_is_repeatable(storage: LocalStorage) -> None:
    newest = Catalog(storage).candidates()[0]
    originals = {key: storage.get(key) for key in fingerprints(storage)}
    results = []
    for _ in range(2):
        (damage,) = spoil(storage, Spoil(DamageKind.FLIP, (Place.SHARD,)), seed="same")
        results.append((damage, storage.get(damage.key)))
        storage.put(damage.key, originals[damage.key])
    assert results[0] == results[1]
    assert results[0][0].checkpoint == newest


def test_a_damaged_checkpoint_is_read_as_damaged(storage: LocalStorage) -> None:
    spoil(storage, Spoil(DamageKind.FLIP, (Place.SHARD,)), seed="0")
    last = read_history(storage).last
    assert last is not None
    assert last.status is Status.COMMITTED
    assert "checksum mismatch" in last.damages[0]
    assert not last.digests


def test_a_step_recorded_twice_by_a_rank_shows_twice_its_samples(storage: LocalStorage) -> None:
    again = {"event": "samples", "generation": 2, "rank": 0, "step": 6, "ids": [60, 61]}
    line = json.dumps({**again, "losses_hex": ["0x0.0p+0"], "time": 1.0}) + "\n"
    with storage.open_appender(ledger_key(2, 0)) as opened:
        opened.append(line.encode())
    assert read_history(storage).steps[-1].ids == (60, 61, 60, 61, 62, 63)


def test_what_retention_removed_is_known_from_the_ledger(storage: LocalStorage) -> None:
    name = "000000000002-g000001-000000000002"
    prune = {"event": "prune", "generation": 2, "rank": 0, "keep": "last=1", "removed": [name]}
    with storage.open_appender(ledger_key(2, 0)) as opened:
        opened.append((json.dumps({**prune, "time": 1.0}) + "\n").encode())
    assert {id.name for id in read_history(storage).pruned} == {name}
