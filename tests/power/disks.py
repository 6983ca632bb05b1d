"""Disks of this machine, or the reason why there are none."""

import pytest

from keepstep.testing.block_device import FILE_SYSTEMS, CuttableDisk, cannot_cut
from keepstep.testing.power.command import DISK_BYTES


def disk(name: str, *, size_bytes: int = DISK_BYTES, backing_bytes: int = 1 << 30) -> CuttableDisk:
    """One of that file system. Skips the test, with the reason, where there can be none."""
    system = FILE_SYSTEMS[name]
    if (reason := cannot_cut(system)) is not None:
        pytest.skip(reason)
    return CuttableDisk(system, size_bytes=size_bytes, backing_bytes=backing_bytes)
