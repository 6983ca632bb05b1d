"""Which checkpoints count, from names and claims alone; and what verification finds."""

from pathlib import Path

import pytest
from test_commit_protocol import Job

from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.layout import MANIFEST, METADATA, CheckpointId
from keepstep.commit.verify import Damage, verify_checkpoint
from keepstep.errors import CorruptCheckpointError, NoCheckpointError
from keepstep.storage.local import LocalStorage
from keepstep.testing.memory_storage import MemoryStorage

OnDisk = tuple[LocalStorage, CheckpointId, list[Path]]


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


def statuses(storage: MemoryStorage) -> dict[int, Status]:
    return {entry.id.step: entry.status for entry in Catalog(storage).entries()}


def test_attempts_without_manifest_are_uncommitted(storage: MemoryStorage) -> None:
    job = Job(storage)
    good, _ = job.save(10)
    half, _ = job.save(20)
    storage.delete([half.key(MANIFEST)])
    assert statuses(storage) == {10: Status.COMMITTED, 20: Status.UNCOMMITTED}
    assert Catalog(storage).latest() == good


def test_strangers_in_the_directory_do_not_count(storage: MemoryStorage) -> None:
    Job(storage).save(10)
    storage.put("steps/step-000099/manifest.json", b"{}")
    storage.put("steps/notes.txt", b"")
    assert statuses(storage) == {10: Status.COMMITTED}


def test_a_quarantined_checkpoint_is_set_aside_with_its_reason(storage: MemoryStorage) -> None:
    job = Job(storage)
    older, _ = job.save(10)
    newer, _ = job.save(20)
    catalog = Catalog(storage)
    catalog.quarantine(newer, "block 3 of its shard")
    catalog.quarantine(newer, "a second reason")
    assert catalog.candidates() == [older]
    (entry,) = (entry for entry in catalog.entries() if entry.status is Status.QUARANTINED)
    assert entry.reason == "block 3 of its shard"
    assert verify_checkpoint(storage, newer) == [], "its own objects were not touched"


def test_a_damaged_mark_still_sets_aside(storage: MemoryStorage) -> None:
    job = Job(storage)
    newer, _ = job.save(20)
    storage.put(f"quarantine/{newer.name}.json", b"torn")
    assert Catalog(storage).latest() is None


def test_a_manifest_under_another_name_is_not_believed(storage: MemoryStorage) -> None:
    job = Job(storage)
    one, _ = job.save(10)
    other, _ = job.save(20)
    storage.put(other.key(MANIFEST), storage.get(one.key(MANIFEST)))
    with pytest.raises(CorruptCheckpointError, match="step 10"):
        Catalog(storage).manifest(other)


def test_a_run_is_created_once(storage: MemoryStorage) -> None:
    first = Catalog(storage).open_run()
    assert Catalog(storage).open_run() == first
    assert Catalog(storage).run()["run"] == first


def test_where_there_is_no_run_it_is_said(storage: MemoryStorage) -> None:
    with pytest.raises(NoCheckpointError, match="holds no keepstep run"):
        Catalog(storage).run()


@pytest.fixture
def on_disk(tmp_path: Path) -> OnDisk:
    storage = LocalStorage(tmp_path)
    attempt, _ = Job(storage).save(10)
    files = sorted(path for path in (tmp_path / attempt.prefix).iterdir())
    assert len(files) == 8
    return storage, attempt, files


def test_every_flipped_byte_of_every_file_is_found(
    on_disk: OnDisk,
) -> None:
    storage, attempt, files = on_disk
    for file in files:
        whole = file.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 0x01
            file.write_bytes(damaged)
            damages = verify_checkpoint(storage, attempt)
            assert any(damage.key == attempt.key(file.name) for damage in damages), (
                file.name,
                place,
            )
        file.write_bytes(whole)
    assert verify_checkpoint(storage, attempt) == []


def test_a_damaged_block_is_named(on_disk: OnDisk) -> None:
    storage, attempt, files = on_disk
    shard = next(file for file in files if file.name == "__1_0.distcp")
    data = bytearray(shard.read_bytes())
    data[40] ^= 0xFF
    shard.write_bytes(data)
    assert verify_checkpoint(storage, attempt) == [
        Damage(attempt.key("__1_0.distcp"), "checksum mismatch", 2)
    ]


def test_missing_and_truncated_files_are_found(
    on_disk: OnDisk,
) -> None:
    storage, attempt, files = on_disk
    for file in files:
        whole = file.read_bytes()
        for damage in (
            lambda f: f.unlink(),
            lambda f: f.write_bytes(f.read_bytes()[:-3]),
            lambda f: f.write_bytes(b""),
        ):
            damage(file)
            damages = verify_checkpoint(storage, attempt)
            assert any(found.key == attempt.key(file.name) for found in damages), file.name
            file.write_bytes(whole)


def test_an_object_that_nothing_vouches_for_is_damage(
    on_disk: OnDisk,
) -> None:
    storage, attempt, _ = on_disk
    storage.delete([attempt.key("__2.index.json")])
    keys = {damage.key for damage in verify_checkpoint(storage, attempt)}
    assert keys == {attempt.key("__2.index.json"), attempt.key("__2_0.distcp")}
    assert attempt.key(METADATA) not in keys
