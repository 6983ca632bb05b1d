"""Dealing out replicas: evenly, completely, and into chunks that any DCP reader can read."""

import math

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from keepstep.checkpoint.replicas import deal


def item(fqn: str, *sizes: int, offset: int = 0, kind: str = "TENSOR") -> WriteItem:
    offsets = torch.Size([offset, *[0] * (len(sizes) - 1)][: len(sizes)])
    chunk = ChunkStorageMetadata(offsets, torch.Size(sizes))
    data = TensorWriteData(chunk, TensorProperties(dtype=torch.float32), torch.Size(sizes))
    return WriteItem(MetadataIndex(fqn, offsets), WriteItemType[kind], tensor_data=data)


def size_bytes(one: WriteItem) -> int:
    assert one.tensor_data is not None
    return 4 * math.prod(one.tensor_data.chunk.sizes)


def loads(plans: list[SavePlan]) -> list[int]:
    return [sum(size_bytes(one) for one in plan.items) for plan in plans]


def assert_covers(plans: list[SavePlan], fqn: str, *sizes: int) -> None:
    """Every element of a tensor is in exactly one chunk."""
    count = torch.zeros(sizes, dtype=torch.int8)
    for plan in plans:
        for one in plan.items:
            if one.index.fqn == fqn:
                assert one.tensor_data is not None
                chunk = one.tensor_data.chunk
                box = tuple(
                    slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True)
                )
                count[box] += 1
                assert one.index.offset == chunk.offsets
    assert count.min() == count.max() == 1


@pytest.mark.parametrize("world_size", [2, 3, 4, 7])
@pytest.mark.parametrize(
    "sizes", [(50_000, 64), (4_000_000,), (1, 3_000_000), (2, 3, 500_000), (3, 1_000_003)]
)
def test_one_giant_tensor_is_shared_evenly(sizes: tuple[int, ...], world_size: int) -> None:
    items = [item("giant", *sizes), item("small", 100)]
    plans = deal([SavePlan(list(items)) for _ in range(world_size)])
    assert max(loads(plans)) <= 1.05 * sum(loads(plans)) / world_size
    assert_covers(plans, "giant", *sizes)
    assert_covers(plans, "small", 100)


def test_many_tensors_are_shared_evenly_and_few_are_cut() -> None:
    shapes = {f"w{n}": (100 + n, 257 + 31 * (n % 7)) for n in range(300)}
    items = [item(fqn, *shape) for fqn, shape in shapes.items()]
    plans = deal([SavePlan(list(items)) for _ in range(8)])
    assert max(loads(plans)) <= 1.01 * sum(loads(plans)) / 8
    assert sum(len(plan.items) for plan in plans) <= 300 + 8
    for fqn, shape in shapes.items():
        assert_covers(plans, fqn, *shape)


def test_small_tensors_stay_whole() -> None:
    items = [item(f"b{n}", 64, 16) for n in range(1000)]
    plans = deal([SavePlan(list(items)) for _ in range(3)])
    assert sum(len(plan.items) for plan in plans) == 1000
    assert max(loads(plans)) <= 1.05 * sum(loads(plans)) / 3


def test_what_one_rank_alone_holds_stays_there_and_replicas_make_up_for_it() -> None:
    own = item("own", 1_000_000, kind="SHARD")
    shared = item("shared", 3_000_000)
    plans = deal([SavePlan([own, shared]), SavePlan([shared]), SavePlan([shared])])
    assert own in plans[0].items
    assert max(loads(plans)) <= 1.05 * 16_000_000 / 3
    assert_covers(plans, "shared", 3_000_000)


def test_shards_with_replicas_are_dealt_among_their_own_holders() -> None:
    left, right = item("w", 500_000), item("w", 500_000, offset=500_000)
    # HSDP on 2 x 2 ranks: 0 and 2 hold the left half, 1 and 3 the right one.
    plans = deal([SavePlan([left]), SavePlan([right]), SavePlan([left]), SavePlan([right])])
    for rank, plan in enumerate(plans):
        for one in plan.items:
            assert one.tensor_data is not None
            assert (one.tensor_data.chunk.offsets[0] >= 500_000) == bool(rank % 2)
    assert max(loads(plans)) <= 1.05 * sum(loads(plans)) / 4
    assert_covers(plans, "w", 1_000_000)


def test_a_rank_with_more_than_its_share_gets_no_replicas() -> None:
    own = item("own", 9_000_000, kind="SHARD")
    shared = item("shared", 1_000_000)
    plans = deal([SavePlan([own, shared]), SavePlan([shared]), SavePlan([shared])])
    assert loads(plans) == [36_000_000, 2_000_000, 2_000_000]


def test_values_and_empty_tensors_are_written_once() -> None:
    value = WriteItem(MetadataIndex("value"), WriteItemType.BYTE_IO)
    empty = item("empty", 0, 5)
    plans = deal([SavePlan([value, empty]) for _ in range(3)])
    written = [one for plan in plans for one in plan.items]
    assert sorted(one.index.fqn for one in written) == ["empty", "value"]
