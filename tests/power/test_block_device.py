"""The disk whose power can be cut does what real ones do."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keepstep.testing import block_device
from keepstep.testing.block_device import FILE_SYSTEMS, CuttableDisk, cannot_cut
from power.disks import disk


@pytest.mark.parametrize("name", FILE_SYSTEMS)
def test_what_was_synced_survives_a_cut_and_what_was_not_does_not(name: str) -> None:
    with disk(name) as cuttable:
        for file, is_synced in (("kept", True), ("lost", False)):
            with (cuttable.path / file).open("wb") as opened:
                opened.write(b"x" * 10_000)
                opened.flush()
                if is_synced:
                    os.fsync(opened.fileno())
        cuttable.cut()
        with pytest.raises(OSError, match="Input/output error"):
            (cuttable.path / "after").write_bytes(b"")
        cuttable.remount()
        assert (cuttable.path / "kept").read_bytes() == b"x" * 10_000
        lost = cuttable.path / "lost"
        assert not lost.exists() or lost.read_bytes() != b"x" * 10_000


@pytest.mark.parametrize("name", FILE_SYSTEMS)
def test_a_rename_without_sync_leaves_an_empty_file_once_somebody_else_syncs(name: str) -> None:
    with disk(name) as cuttable:
        (cuttable.path / "temporary").write_bytes(b"x" * 10_000)
        (cuttable.path / "temporary").rename(cuttable.path / "final")
        with (cuttable.path / "somebody-else").open("wb") as opened:
            os.fsync(opened.fileno())
        cuttable.cut()
        cuttable.remount()
        assert (cuttable.path / "final").stat().st_size == 0


def test_a_killed_process_leaves_no_mount_no_device_and_no_directory(ext4: CuttableDisk) -> None:
    program = (
        "import os, signal, sys\n"
        "from keepstep.testing.block_device import CuttableDisk, FILE_SYSTEMS\n"
        "disk = CuttableDisk(FILE_SYSTEMS['ext4']).__enter__()\n"
        "print(disk._directory, disk._keeper.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    directory, keeper = done.stdout.split()
    _wait_for_end_of(int(keeper))
    assert not Path(directory).exists()
    attached = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True)
    assert directory not in attached.stdout


def test_the_reason_is_said_where_there_can_be_no_such_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in (cannot_cut(FILE_SYSTEMS["ext4"]) or "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(block_device.shutil, "which", lambda tool: None)
    assert "mkfs.xfs: install" in (cannot_cut(FILE_SYSTEMS["xfs"]) or "")


def _wait_for_end_of(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [], 30)
    finally:
        os.close(descriptor)
