import copy
from typing import Any

import pytest
import torch

from keepstep.data import StreamLoader
from keepstep.errors import ConfigError
from keepstep.world import World


class Stream:
    """Six samples an epoch: stream, epoch, place, and a draw. Its state is changed in place."""

    length = 6

    def __init__(self, index: int, count: int) -> None:
        self._index = index
        self._epoch = 0
        self._state = {"place": 0}

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Any:
        while self._state["place"] < self.length:
            self._state["place"] += 1
            place = self._state["place"] - 1
            yield self._index, self._epoch, place, torch.rand(()).item()

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = dict(state)


def loader(**options: Any) -> StreamLoader:
    settings = {"global_size": 16, "microbatch": 4, "collate": list} | options
    return StreamLoader(Stream, **settings)


def steps(source: StreamLoader, count: int) -> list[Any]:
    return [batch for _ in range(count) for batch, _ in source.passes()]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_change_nothing(num_workers: int) -> None:
    whole = steps(loader(), 5)
    assert whole[0][0][:3] == (0, 0, 0)
    assert whole[4 * 1][2][:3] == (0, 1, 0)  # the second epoch begins within a microbatch
    read_ahead = loader(num_workers=num_workers, prefetch=3)
    assert steps(read_ahead, 2) == whole[:8]
    state = read_ahead.state_dict()
    assert steps(read_ahead, 1) == whole[8:12]
    resumed = loader(num_workers=num_workers)
    resumed.load_state_dict(state)
    assert steps(resumed, 3) == whole[8:]


def test_a_saved_state_is_not_changed_by_going_on() -> None:
    source = loader()
    steps(source, 1)
    state = source.state_dict()
    before = copy.deepcopy(state)
    steps(source, 1)
    assert state == before
    assert state["samples"] == 16
    assert state["streams"][1] == {"epoch": 0, "batches": 1, "state": {"place": 4}}


def test_a_resume_at_the_end_of_an_epoch_begins_the_next() -> None:
    source = loader(microbatch=2, global_size=2)
    steps(source, 3)
    resumed = loader(microbatch=2, global_size=2)
    resumed.load_state_dict(source.state_dict())
    (batch,) = steps(resumed, 1)
    assert [sample[:3] for sample in batch] == [(0, 1, 0), (0, 1, 1)]


@pytest.mark.parametrize("options", [{"global_size": 20}, {"microbatch": 2}, {"seed": 1}])
def test_positions_of_other_streams_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="positions of the streams mean nothing"):
        loader(**options).load_state_dict(loader().state_dict())


def test_an_empty_stream_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "length", 0)
    with pytest.raises(ConfigError, match="stream 0 of 4 has no samples"):
        steps(loader(), 1)


def test_a_stream_without_a_state_is_refused() -> None:
    source = StreamLoader(lambda index, count: [1, 2], global_size=2, microbatch=1)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match=r"stream 0 is a list without state_dict\(\)"):
        steps(source, 1)


def test_ranks_without_a_process_group_cannot_gather() -> None:
    with pytest.raises(ConfigError, match="init_process_group"):
        loader(world=World(rank=0, world_size=2)).state_dict()


def test_torchdata_nodes_go_on_exactly() -> None:
    nodes = pytest.importorskip("torchdata.nodes", reason="torchdata is not installed")

    def open_stream(index: int, count: int) -> Any:
        return nodes.Loader(nodes.IterableWrapper(range(index, 40, count)))

    def make() -> StreamLoader:
        return StreamLoader(open_stream, global_size=4, microbatch=2, collate=list)

    whole = steps(make(), 12)
    source = make()
    steps(source, 5)
    resumed = make()
    resumed.load_state_dict(source.state_dict())
    assert steps(resumed, 7) == whole[10:]


def test_hugging_face_streams_go_on_exactly() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def open_stream(index: int, count: int) -> Any:
        rows = datasets.Dataset.from_dict({"id": list(range(40))})
        stream = rows.to_iterable_dataset(num_shards=4)
        return stream.shard(num_shards=count, index=index)

    def make() -> StreamLoader:
        return StreamLoader(open_stream, global_size=4, microbatch=2, collate=list)

    whole = steps(make(), 12)
    source = make()
    steps(source, 5)
    resumed = make()
    resumed.load_state_dict(source.state_dict())
    assert steps(resumed, 7) == whole[10:]
