"""``keepstep copy``: whole or not at all, checked on the way, and a run where it arrives."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from run_on_disk import RunOnDisk

from keepstep.commit import copying_objects
from keepstep.commit.blocks import BLOCK_BYTES, fold_checksums, run_checksums, sha256_digest
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.copying import check_fits, copy_checkpoint
from keepstep.commit.index import RankIndex
from keepstep.commit.layout import (
    METADATA,
    CheckpointId,
    generation_key,
    index_filename,
    shard_filename,
)
from keepstep.commit.lineage import claim_generation
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.commit.protocol import publish
from keepstep.commit.verify import verify_checkpoint
from keepstep.errors import (
    ConfigError,
    CorruptCheckpointError,
    ExitCode,
    NoCheckpointError,
    StorageUnavailable,
)
from keepstep.storage.base import Buffer, Storage
from keepstep.storage.local import LocalStorage
from keepstep.storage.opening import open_storage
from keepstep.testing.memory_storage import MemoryStorage

Keepstep = Callable[..., tuple[int, str, str]]


class Recording(MemoryStorage):
    """Writes down what arrives, in order, and can break down before an object."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []
        self.breaks_at = "nothing"

    def put(self, key: str, data: Buffer) -> None:
        self._note(key)
        super().put(key, data)

    def create(self, key: str, data: Buffer) -> None:
        self._note(key)
        super().create(key, data)

    def _note(self, key: str) -> None:
        if key.endswith(self.breaks_at):
            raise StorageUnavailable("the store broke down", key=key)
        if key not in self.written:
            self.written.append(key)


@pytest.fixture
def there() -> Recording:
    return Recording()


def newest_of(run: RunOnDisk) -> CheckpointId:
    return run.catalog.candidates()[0]


def copy_newest(run: RunOnDisk, there: Storage) -> None:
    copy_checkpoint(run.storage, there, newest_of(run))


def manifests(storage: Storage) -> list[str]:
    return [info.key for info in storage.list("steps/") if info.key.endswith("manifest.json")]


def same_everywhere(run: RunOnDisk, there: Storage, checkpoint: CheckpointId) -> bool:
    keys = [info.key for info in run.storage.list(checkpoint.prefix)]
    return [info.key for info in there.list(checkpoint.prefix)] == keys and all(
        run.storage.get(key) == there.get(key) for key in keys
    )


def test_the_copy_is_a_run_that_counts(run: RunOnDisk, there: Recording) -> None:
    newest = newest_of(run)
    copy_newest(run, there)
    catalog = Catalog(there)
    assert catalog.run() == run.catalog.run()
    assert catalog.candidates() == [newest]
    assert verify_checkpoint(there, newest) == []
    assert same_everywhere(run, there, newest)


def test_the_manifest_is_last_and_run_and_claims_are_before_it(
    run: RunOnDisk, there: Recording
) -> None:
    copy_newest(run, there)
    assert there.written[-3:] == [
        generation_key(1),
        "run.json",
        newest_of(run).key("manifest.json"),
    ]


def test_a_job_can_go_on_from_the_copy(run: RunOnDisk, there: Recording) -> None:
    first, second, newest = reversed(run.catalog.candidates())
    run.start(resumed_from=second)  # generation 2: step 30 of generation 1 is superseded
    latest = run.save(25)
    assert [entry.id for entry in run.catalog.entries() if entry.status is Status.SUPERSEDED] == [
        newest
    ]
    for checkpoint in (latest, second, first):
        copy_checkpoint(run.storage, there, checkpoint)
    catalog = Catalog(there)
    assert catalog.candidates() == [latest, second, first]
    claim = claim_generation(there, newest_seen=2, world_size=1, resumed_from=latest)
    assert claim.number == 3
    assert catalog.candidates() == [latest, second, first]


@pytest.mark.parametrize("broken", ["__1_0.distcp", ".metadata", "000001.json", "manifest.json"])
def test_a_copy_that_is_cut_off_is_no_checkpoint_and_goes_on_later(
    run: RunOnDisk, there: Recording, broken: str
) -> None:
    there.breaks_at = broken
    with pytest.raises(StorageUnavailable):
        copy_newest(run, there)
    assert manifests(there) == []
    left = {info.key for info in there.list("")}
    there.breaks_at, there.written = "nothing", []
    outcome = copy_checkpoint(run.storage, there, newest_of(run))
    sent_again = left & set(there.written) - {generation_key(1), "run.json"}
    assert not sent_again
    assert outcome.kept_bytes + outcome.sent_bytes == outcome.manifest.total_bytes
    assert outcome.kept_bytes > 0
    assert same_everywhere(run, there, newest_of(run))


@pytest.mark.parametrize("spoiled", [b"half", b"\7" * 160], ids=["shorter", "as long"])
def test_what_an_earlier_copy_left_half_written_is_sent_again(
    run: RunOnDisk, there: Recording, spoiled: bytes
) -> None:
    newest = newest_of(run)
    for file in (shard_filename(0, 0), index_filename(1)):
        there.put(newest.key(file), spoiled)
    copy_newest(run, there)
    assert same_everywhere(run, there, newest)


def test_what_is_committed_there_is_left_alone(run: RunOnDisk, there: Recording) -> None:
    copy_newest(run, there)
    there.written = []
    outcome = copy_checkpoint(run.storage, there, newest_of(run))
    assert outcome.was_committed
    assert there.written == []


@pytest.mark.parametrize(
    ("file", "offset", "place"),
    [("__1_0.distcp", 70, "__1_0.distcp block 1"), (".metadata", 0, ".metadata")],
)
def test_damage_is_named_and_nothing_is_committed(
    run: RunOnDisk, there: Recording, file: str, offset: int, place: str
) -> None:
    run.flip_byte(newest_of(run), file, offset)
    with pytest.raises(CorruptCheckpointError) as caught:
        copy_newest(run, there)
    assert place in str(caught.value)
    assert manifests(there) == []
    assert newest_of(run).key(file) not in [info.key for info in there.list("")]


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "__1.index.json"])
def test_what_is_missing_in_the_source_is_damage(
    run: RunOnDisk, there: Recording, file: str
) -> None:
    run.path(newest_of(run), file).unlink()
    with pytest.raises(CorruptCheckpointError, match="is missing"):
        copy_newest(run, there)
    assert manifests(there) == []


def test_a_shard_of_the_wrong_size_is_damage(run: RunOnDisk, there: Recording) -> None:
    with run.path(newest_of(run), "__0_0.distcp").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptCheckpointError, match="block 2"):
        copy_newest(run, there)


def test_large_shards_go_in_pieces_over_several_threads(tmp_path: Path) -> None:
    data = bytes(range(251)) * 130_000  # 33 MB
    run = RunOnDisk(tmp_path / "run")
    run.start()
    checkpoint = CheckpointId(10, 1, "0123456789ab")
    file = shard_filename(0, 0)
    blocks = fold_checksums(file, [run_checksums(0, data, BLOCK_BYTES)], BLOCK_BYTES)
    index = RankIndex(rank=0, frames=(), files=(blocks,)).to_bytes()
    small = {index_filename(0): index, METADATA: b"stock"}
    for name, content in {file: data, **small}.items():
        run.storage.create(checkpoint.key(name), content)
    records = [ObjectRecord(name, len(d), sha256_digest(d)) for name, d in small.items()]
    manifest = Manifest(
        run=run.run_id,
        step=10,
        generation=1,
        attempt=checkpoint.attempt,
        created="2026-01-01T00:00:00+00:00",
        keepstep_version="0",
        torch_version="0",
        world_size=1,
        objects=(ObjectRecord(file, len(data), blocks.digest), *records),
    )
    publish(run.storage, manifest)
    arrived: list[int] = []
    for there in (LocalStorage(tmp_path / "copy"), open_storage(f"memory://{tmp_path}")):
        arrived.clear()
        copy_checkpoint(run.storage, there, checkpoint, arrived.append)
        assert there.get(checkpoint.key(file)) == data
        assert sum(arrived) == manifest.total_bytes
        assert max(arrived) <= 8 << 20


def test_no_piece_is_begun_after_one_has_failed() -> None:
    begun: list[int] = []

    def work(item: int, _: memoryview) -> None:
        begun.append(item)
        raise CorruptCheckpointError("damaged")

    with pytest.raises(CorruptCheckpointError):
        copying_objects._on_threads(2, 1, range(1000), work)
    assert len(begun) <= 2


def test_another_run_is_refused(run: RunOnDisk, tmp_path: Path) -> None:
    other = RunOnDisk(tmp_path / "other")
    other.start()
    with pytest.raises(ConfigError, match=f"holds another run \\({other.run_id}\\)"):
        check_fits(run.storage, other.storage, [newest_of(run)])


def test_a_place_is_no_copy_of_itself(run: RunOnDisk) -> None:
    with pytest.raises(ConfigError, match="both source and destination"):
        check_fits(run.storage, LocalStorage(run.root), [newest_of(run)])


def test_a_copy_that_has_gone_on_by_itself_keeps_its_line(run: RunOnDisk, there: Recording) -> None:
    first, second, _ = reversed(run.catalog.candidates())
    copy_checkpoint(run.storage, there, second)
    claim_generation(there, newest_seen=1, world_size=1, resumed_from=second)
    with pytest.raises(ConfigError, match="would not count"):
        check_fits(run.storage, there, [newest_of(run)])
    check_fits(run.storage, there, [first])


def test_histories_that_have_parted_are_not_mixed(run: RunOnDisk, there: Recording) -> None:
    newest = newest_of(run)
    copy_newest(run, there)
    claim_generation(there, newest_seen=1, world_size=1, resumed_from=newest)
    run.start(resumed_from=newest)
    with pytest.raises(ConfigError, match=r"generation 2 .* jobs have gone on in both"):
        check_fits(run.storage, there, [run.save(40)])


def test_a_generation_that_the_source_left_out_is_not_superseded_there(
    run: RunOnDisk, there: Recording
) -> None:
    newest = newest_of(run)
    copy_newest(run, there)
    claim_generation(there, newest_seen=1, world_size=1, resumed_from=newest)
    run.generation = 2  # as after a start whose claim was lost with its disk
    run.start(resumed_from=newest)
    with pytest.raises(ConfigError, match="generation 2"):
        check_fits(run.storage, there, [run.save(40)])


def test_what_was_set_aside_there_is_not_copied_over(run: RunOnDisk, there: Recording) -> None:
    copy_newest(run, there)
    Catalog(there).quarantine(newest_of(run), "block 3 is damaged")
    with pytest.raises(ConfigError, match="block 3 is damaged"):
        check_fits(run.storage, there, [newest_of(run)])


def test_a_job_that_starts_there_meanwhile_is_noticed(run: RunOnDisk) -> None:
    newest = newest_of(run)

    class Taken(MemoryStorage):
        def put(self, key: str, data: Buffer) -> None:
            super().put(key, data)
            if key.endswith(METADATA):
                claim_generation(self, newest_seen=1, world_size=1, resumed_from=None)

    there = Taken()
    with pytest.raises(NoCheckpointError, match="a job has started"):
        copy_checkpoint(run.storage, there, newest)


def test_copy_brings_the_newest_unless_told_otherwise(
    run: RunOnDisk, keepstep: Keepstep, tmp_path: Path
) -> None:
    there = str(tmp_path / "copy")
    code, out, err = keepstep("copy", run.uri, there)
    assert (code, err) == (0, "")
    assert out.startswith("step 30: copied (5 objects, ")
    assert keepstep("copy", run.uri, there)[1] == "step 30: there already\n"
    assert "step 10: copied" in keepstep("copy", run.uri, there, "--step", "10")[1]
    code, out, _ = keepstep("copy", run.uri, there, "--all")
    assert [line.split(" (")[0] for line in out.splitlines()] == [
        "step 30: there already",
        "step 20: copied",
        "step 10: there already",
    ]
    assert keepstep("verify", there, "--all")[0] == 0
    assert len(keepstep("ls", there)[1].splitlines()) == 4


def test_copy_json_has_stable_names(run: RunOnDisk, keepstep: Keepstep, tmp_path: Path) -> None:
    there = str(tmp_path / "copy")
    document = json.loads(keepstep("copy", run.uri, there, "--json")[1])
    size = run.catalog.manifest(newest_of(run)).total_bytes
    assert document == {
        "source": run.uri,
        "destination": there,
        "checkpoints": [
            {
                "name": newest_of(run).name,
                "step": 30,
                "was_committed": False,
                "size_bytes": size,
                "sent_bytes": size,
                "kept_bytes": 0,
            }
        ],
    }


def test_copy_of_damage_exits_with_65(run: RunOnDisk, keepstep: Keepstep, tmp_path: Path) -> None:
    run.flip_byte(newest_of(run), "__0_0.distcp", 3)
    code, out, err = keepstep("copy", run.uri, str(tmp_path / "copy"))
    assert (code, out) == (ExitCode.DAMAGED, "")
    assert "__0_0.distcp block 0" in err
    assert keepstep("ls", str(tmp_path / "copy"))[0] == ExitCode.NO_CHECKPOINT


def test_copy_takes_only_what_counts(run: RunOnDisk, keepstep: Keepstep, tmp_path: Path) -> None:
    there = str(tmp_path / "copy")
    newest = newest_of(run)
    run.catalog.quarantine(newest, "damaged")
    code, _, err = keepstep("copy", run.uri, there, "--step", "30")
    assert code == ExitCode.NO_CHECKPOINT
    assert "is quarantined" in err
    assert keepstep("copy", run.uri, there)[1].startswith("step 20: copied")
    assert keepstep("copy", run.uri, there, "--step", "30", "--all")[0] == ExitCode.USAGE
    empty = RunOnDisk(tmp_path / "empty")
    assert keepstep("copy", empty.uri, there)[0] == ExitCode.NO_CHECKPOINT
    assert keepstep("copy", str(tmp_path / "nowhere"), there)[0] == ExitCode.NO_CHECKPOINT


def test_progress_is_for_people_who_watch(
    run: RunOnDisk, keepstep: Keepstep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    _, _, err = keepstep("copy", run.uri, str(tmp_path / "copy"))
    assert "step 30: " in err
    assert err.endswith("\r\x1b[2K")
