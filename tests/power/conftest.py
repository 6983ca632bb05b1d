"""Disks whose power can be cut, where this machine has them."""

from collections.abc import Iterator

import pytest

from keepstep.testing.block_device import CuttableDisk
from power.disks import disk


@pytest.fixture
def ext4() -> Iterator[CuttableDisk]:
    """An ext4 of 64 MiB."""
    with disk("ext4") as made:
        yield made
