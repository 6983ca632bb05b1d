"""The barrier's store over a real TCPStore: values of any size."""

import os
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from keepstep.checkpoint.store import C10dStore

MIB = 1 << 20


@pytest.fixture
def stores() -> Iterator[tuple[C10dStore, C10dStore]]:
    """Of two ranks, as it were."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.init_process_group("gloo", store=server, rank=0, world_size=1)
    try:
        yield C10dStore(timeout_seconds=10), C10dStore(timeout_seconds=10)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("size_bytes", [0, 100, 3 * MIB, 9 * MIB, 20 * MIB])
@pytest.mark.parametrize("kind", ["random", "alike"])
def test_a_value_arrives_whole_and_goes_whole(
    stores: tuple[C10dStore, C10dStore], size_bytes: int, kind: str
) -> None:
    writer, reader = stores
    value = os.urandom(size_bytes) if kind == "random" else b"plan" * (size_bytes // 4)
    keys_before = writer._store.num_keys()
    writer.set("a", value)
    assert reader.wait("a", 5) == value
    reader.delete("a")
    assert reader.wait("a", 0) is None
    assert writer._store.num_keys() == keys_before


def test_what_is_alike_is_compressed(stores: tuple[C10dStore, C10dStore]) -> None:
    writer, _ = stores
    writer.set("a", b"plan" * MIB)
    assert len(writer._store.get("a")) < MIB / 10
