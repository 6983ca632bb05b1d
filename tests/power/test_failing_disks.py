"""Disks that are full, fail or turn read-only: the job says so, and what was saved counts."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from keepstep.commit.catalog import Catalog
from keepstep.errors import CommitError, StorageDenied, StorageError, StorageFull
from keepstep.storage.local import LocalStorage
from keepstep.storage.log import open_log, read_log
from keepstep.testing.block_device import CuttableDisk
from keepstep.testing.power.calls import Call, calls_seen
from keepstep.testing.power.diary import Diary
from keepstep.testing.power.job import BytesJob
from keepstep.testing.power.judge import broken_promises
from power.disks import disk

Break = Callable[[], None]


class JobOnDisk:
    """A job with two committed steps."""

    def __init__(self, cuttable: CuttableDisk) -> None:
        self.root = cuttable.path / "run-0"
        self.diary = Diary()
        self.job = BytesJob(self.root, self.diary, check=lambda: None)
        for step in (10, 20):
            assert self.job.save(step) == {}

    def fails_to_save(self, step: int) -> list[str]:
        """What every rank says; all of them fail, and nothing of it counts."""
        raised = self.job.save(step)
        assert len(raised) == 2
        for error in raised.values():
            assert isinstance(error, CommitError | StorageError), repr(error)
        return [str(error) for error in raised.values()]

    def saves_again(self, step: int) -> None:
        """By the same process, and by the next one: nothing is lost, nothing is left over."""
        assert self.job.save(step) == {}
        assert broken_promises(self.root, self.diary) == []


@pytest.mark.parametrize("free_bytes", [0, 16 << 10, 256 << 10, 768 << 10])
def test_a_full_disk(ext4: CuttableDisk, free_bytes: int) -> None:
    run = JobOnDisk(ext4)
    ballast = ext4.path / "ballast"
    _fill(ballast, free_bytes)
    for said in run.fails_to_save(30):
        assert "No space left on device" in said
        assert str(run.root / "steps") in said, "the path"
        assert "free space there" in said, "the remedy"
    assert _latest_step(run.root) == 20
    ballast.unlink()
    run.saves_again(40)


def test_a_log_on_a_full_disk_has_whole_lines_and_in_the_end_all(ext4: CuttableDisk) -> None:
    storage, key = LocalStorage(ext4.path / "run-0"), "ledger/g000001/rank-00000.jsonl"
    opened = open_log(storage, key)
    lines = [b"%d %s\n" % (number, b"-" * 100_000) for number in range(8)]
    opened.append(lines[0])
    _fill(ext4.path / "ballast", 150_000)
    refused = []
    for line in lines[1:-1]:
        try:
            opened.append(line)
        except StorageFull:
            refused.append(line)
    assert refused
    assert read_log(storage, key) == b"".join(lines[: 7 - len(refused)])
    (ext4.path / "ballast").unlink()
    opened.append(lines[-1])
    assert read_log(storage, key) == b"".join(lines)


def test_writes_that_are_accepted_and_fail_when_they_are_synced() -> None:
    with disk("ext4", size_bytes=256 << 20, backing_bytes=26 << 20) as thin:
        run = JobOnDisk(thin)
        step = 20
        while run.diary.head is not None and run.diary.head.step == step:
            assert step < 300, "more was committed than there is room for"
            step += 10
            raised = run.job.save(step)
            if raised:
                assert all(isinstance(e, CommitError | StorageError) for e in raised.values())
                assert len(raised) == 2 or run.diary.head.step == step
        assert any("free space" in str(e) or "kernel's log" in str(e) for e in raised.values())
        assert _latest_step(run.root) == step - 10
        thin.add_memory(1 << 30)
        thin.cut()  # the machine is started again
        thin.remount()
        run.job = BytesJob(run.root, run.diary, check=lambda: None)
        run.saves_again(step + 10)


@pytest.mark.parametrize("name", ["ext4", "xfs"])
@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "link", "replace"])
def test_every_call_fails_from_a_moment_on(name: str, call: str) -> None:
    with disk(name) as failing:
        run = JobOnDisk(failing)
        with _breaking(failing, at=call, by=failing.cut):
            for said in run.fails_to_save(30):
                assert "Input/output error" in said or "does not say" in said, said
        failing.remount()
        assert _latest_step(run.root) == 20
        run.job = BytesJob(run.root, run.diary, check=lambda: None)
        run.saves_again(40)


def test_a_file_system_is_made_read_only(ext4: CuttableDisk) -> None:
    run = JobOnDisk(ext4)
    ext4.set_read_only(is_read_only=True)
    for said in run.fails_to_save(30):
        assert "Read-only file system" in said
        assert "mount it writable" in said
        assert str(run.root / "steps") in said
    assert _latest_step(run.root) == 20
    with pytest.raises(StorageDenied, match="mount it writable"):
        BytesJob(run.root, Diary(), check=lambda: None)
    ext4.set_read_only(is_read_only=False)
    run.saves_again(40)


def test_ext4_turns_read_only_between_a_name_and_its_sync(ext4: CuttableDisk) -> None:
    """Nobody may believe in a manifest that can be read, and is not on the disk."""
    run = JobOnDisk(ext4)
    ext4.set_read_only_on_errors()

    def is_sync_of_manifest(call: Call, before: list[Call]) -> bool:
        return call.is_directory and before[-1].path.name == "manifest.json"

    with _breaking(ext4, at=is_sync_of_manifest, by=ext4.fail):
        raised = run.job.save(30)
    assert run.diary.head is not None
    reported = run.diary.head.step
    assert len(raised) == 2
    ext4.cut()
    ext4.remount()
    assert _latest_step(run.root) == reported == 20
    run.job = BytesJob(run.root, run.diary, check=lambda: None)
    run.saves_again(40)


def _latest_step(root: Path) -> int | None:
    latest = Catalog(LocalStorage(root)).latest()
    return latest.step if latest else None


def _fill(ballast: Path, free_bytes: int) -> None:
    """Leave so much free."""
    with ballast.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(64 << 10))
                os.fsync(file.fileno())
        file.truncate(file.tell() - free_bytes)
        os.fsync(file.fileno())


@contextmanager
def _breaking(
    cuttable: CuttableDisk, *, at: str | Callable[[Call, list[Call]], bool], by: Break
) -> Iterator[None]:
    """Let the disk fail right before the first call of that kind."""
    before: list[Call] = []
    is_broken = False

    def see(call: Call) -> object:
        nonlocal is_broken
        is_it = call.name == at if isinstance(at, str) else bool(before) and at(call, before)
        if is_it and not is_broken:
            is_broken = True
            by()
        before.append(call)
        return call.make()

    with calls_seen(cuttable.path, see):
        yield
    assert is_broken, "the disk was to fail, and did not"
