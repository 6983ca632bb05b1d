"""``keepstep gc --uploads`` on a store in which uploads outlive whoever began them."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from run_on_disk import RunOnDisk

from keepstep.cli import gc
from keepstep.commit.layout import CheckpointId
from keepstep.commit.lineage import claim_generation
from keepstep.commit.uploads import forgotten_uploads, stale_uploads
from keepstep.errors import ExitCode
from keepstep.storage.base import Upload
from keepstep.storage.local import TEMPORARY
from keepstep.testing.memory_storage import MemoryStorage

Keepstep = Callable[..., tuple[int, str, str]]
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


def upload(key: str, age: timedelta = timedelta(0), now: datetime = NOW) -> Upload:
    return Upload(key, f"id of {key}", now - age)


def shard(generation: int) -> str:
    return CheckpointId(10, generation, "0123456789ab").key("__0_0.distcp")


class WithUploads(MemoryStorage):
    def __init__(self, *began: Upload) -> None:
        super().__init__()
        self.began = list(began)

    def uploads(self, prefix: str) -> tuple[Upload, ...]:
        return tuple(upload for upload in self.began if upload.key.startswith(prefix))

    def abort_upload(self, upload: Upload) -> None:
        self.began.remove(upload)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> WithUploads:
    """Generation 3 is the newest; it and generation 2 are uploading, and so did somebody else."""
    now, days = datetime.now(UTC), timedelta(days=2)
    storage = WithUploads(
        upload(shard(2), timedelta(minutes=1), now),
        upload(shard(3), timedelta(minutes=1), now),
        upload("ledger/g000003/rank-00000.jsonl", days, now),
        upload("somebody/else", days, now),
    )
    for newest in range(3):
        claim_generation(storage, newest_seen=newest, world_size=1, resumed_from=None)
    monkeypatch.setattr(gc, "open_storage", lambda _: storage)
    return storage


def left(storage: WithUploads) -> list[str]:
    return [upload.key for upload in storage.began]


def test_only_attempts_of_older_generations_are_stale() -> None:
    found = [upload(shard(generation)) for generation in (1, 2, 3)]
    found += [upload("steps/strange/x"), upload("run.json"), upload(shard(1)[len("steps/") :])]
    assert stale_uploads(found, 3) == found[:2]
    assert stale_uploads(found, 0) == []


def test_only_old_uploads_of_a_run_are_forgotten() -> None:
    day = timedelta(days=1)
    young, old = upload(shard(3), day / 2), upload(shard(3), day * 2)
    ours, theirs = upload("probe/12/sample", day * 2), upload("other/run/steps", day * 2)
    assert forgotten_uploads([young, old, ours, theirs], older_than=day, now=NOW) == [old, ours]


def test_gc_aborts_what_no_living_job_can_own(storage: WithUploads, keepstep: Keepstep) -> None:
    code, out, err = keepstep("gc", "s3://bucket/run", "--uploads")
    assert (code, err) == (0, "")
    assert left(storage) == [shard(3), "somebody/else"]
    assert out.splitlines()[-1] == "2 unfinished uploads aborted"
    assert shard(2) in out
    assert keepstep("gc", "s3://bucket/run", "--uploads")[1] == "0 unfinished uploads aborted\n"


def test_gc_is_told_how_old_is_old(storage: WithUploads, keepstep: Keepstep) -> None:
    keepstep("gc", "s3://bucket/run", "--uploads", "--older-than", "30s")
    assert left(storage) == ["somebody/else"]


def test_a_dry_run_aborts_nothing(storage: WithUploads, keepstep: Keepstep) -> None:
    code, out, _ = keepstep("gc", "s3://bucket/run", "--uploads", "--dry-run", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["is_dry_run"]
    assert len(document["uploads"]) == 2
    assert {"key", "id", "began"} == set(document["uploads"][0])
    assert len(storage.began) == 4
    assert (
        "2 unfinished uploads would be aborted"
        in keepstep("gc", "s3://bucket/run", "--uploads", "--dry-run")[1]
    )


def test_gc_wants_to_know_what_to_collect(tmp_path: Path, keepstep: Keepstep) -> None:
    code, _, err = keepstep("gc", str(tmp_path))
    assert code == ExitCode.USAGE
    assert "--uploads" in err


@pytest.mark.parametrize("age", ["a while", "10steps", "auto", "0s"])
def test_an_age_is_a_time(tmp_path: Path, keepstep: Keepstep, age: str) -> None:
    code, _, err = keepstep("gc", str(tmp_path), "--uploads", "--older-than", age)
    assert code == ExitCode.USAGE
    assert "write 30s, 90min or 24h" in err


def test_a_store_that_keeps_no_uploads_has_nothing_to_collect(keepstep: Keepstep) -> None:
    code, out, _ = keepstep("gc", "memory://gc", "--uploads")
    assert code == 0
    assert "keeps no unfinished uploads" in out
    assert not json.loads(keepstep("gc", "memory://gc", "--uploads", "--json")[1])["keeps_uploads"]


def test_what_a_killed_writer_left_in_a_directory_is_collected(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    """Files that no listing shows, and that nobody ever removed."""
    old, new = run.newest, CheckpointId(40, 2, "0123456789ab")
    assert old is not None
    run.start(resumed_from=old)
    (run.root / new.prefix).mkdir()
    left = [
        run.root / "steps" / old.name / f"{TEMPORARY}{1:016x}",
        run.root / f"{TEMPORARY}{2:016x}",
    ]
    young = run.root / new.prefix / f"{TEMPORARY}{3:016x}"
    strange = run.root / f"{TEMPORARY}of-somebody-else"
    for path in (*left, young, strange):
        path.write_bytes(b"half")
    os.utime(left[1], (0, 0))
    assert "2 unfinished uploads aborted" in keepstep("gc", run.uri, "--uploads")[1]
    assert [path for path in (*left, young, strange) if path.exists()] == [young, strange]
    assert keepstep("verify", run.uri, "--all")[0] == 0
