"""Reading once: what several ranks need comes from storage one time, and reaches all of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import Strategy, adamw, assert_equal, build, full_state, open_session, step

from keepstep.checkpoint.engine import load_state, plan_load
from keepstep.checkpoint.fit import fit_state
from keepstep.checkpoint.reader import ShardReader, Snapshot
from keepstep.checkpoint.sharing import read_together
from keepstep.commit.catalog import Catalog
from keepstep.elastic.control_group import ControlGroup
from keepstep.errors import CoordinationError, CorruptCheckpointError, StorageUnavailable
from keepstep.state.app_state import AppState
from keepstep.storage.local import LocalStorage
from keepstep.storage.local_reading import FileReader
from keepstep.world import World
from rank_processes import RunRanks


class Large(torch.nn.Module):
    """24 MiB and some small change."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(1536, 4096))
        self.small = torch.nn.ParameterList(torch.randn(n + 1) for n in range(200))


def save(rank: int, uri: str, strategy: Strategy) -> dict[str, Any]:
    model = build(strategy)
    optimizer = adamw(model)
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        step(model, optimizer)
        session.tick()
    return full_state(model=model, optim=optimizer)


def save_large(rank: int, uri: str) -> None:
    with open_session(uri) as session:
        session.track(model=Large(1))
        session.restore()
        session.tick()


def open_reader(uri: str) -> ShardReader:
    storage = LocalStorage(uri)
    (checkpoint,) = Catalog(storage).candidates()
    return ShardReader(storage, Snapshot.open(storage, Catalog(storage).manifest(checkpoint)))


def control_of(rank: int) -> ControlGroup:
    world = World(rank=rank, world_size=torch.distributed.get_world_size())
    return ControlGroup(world, timeout_seconds=20)


def load_once(rank: int, uri: str, **objects: Any) -> tuple[int, dict[int, str]]:
    """Bytes read by this rank, and the kinds of the errors by rank."""
    control = control_of(rank)
    state = AppState(rank=rank, seed=0)
    state.track(objects)
    reader = open_reader(uri)
    fit = fit_state(open_reader(uri), state, where=uri, is_partial=True)
    planned = plan_load(reader, state, fit, with_rng=False)
    problems = read_together(planned, reader, control)
    if not problems:
        state.load_dict(planned.template)
    control.close()
    return reader.bytes_read, {rank: type(error).__name__ for rank, error in problems.items()}


def load_model_once(rank: int, uri: str, strategy: Strategy) -> tuple[dict[str, Any], int, int]:
    model = build(strategy, seed=99)
    optimizer = adamw(model)
    read_bytes, problems = load_once(rank, uri, model=model, optim=optimizer)
    assert problems == {}
    other = build(strategy, seed=98)
    plain = open_reader(uri)
    state = AppState(rank=rank, seed=0)
    state.track({"model": other, "optim": adamw(other)})
    load_state(plain, state, fit_state(open_reader(uri), state, where=uri), with_rng=False)
    return full_state(model=model, optim=optimizer), read_bytes, plain.bytes_read


@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 3), ("hsdp", 4), ("fsdp", 2), ("none", 2)])
def test_every_rank_gets_the_same_state_as_by_reading_alone(
    run_ranks: RunRanks, tmp_path: Path, strategy: Strategy, ranks: int
) -> None:
    saved = run_ranks(2, save, str(tmp_path), "fsdp")[0]
    loaded = run_ranks(ranks, load_model_once, str(tmp_path), strategy)
    for state, _, _ in loaded:
        assert_equal(saved, state)
    size_bytes = sum(path.stat().st_size for path in tmp_path.glob("steps/*/*.distcp"))
    assert sum(read for _, read, _ in loaded) <= size_bytes
    assert sum(alone for _, _, alone in loaded) > 1.5 * size_bytes, "what it saves"


def load_large_once(rank: int, uri: str) -> int:
    model = Large(5 + rank)
    read_bytes, problems = load_once(rank, uri, model=model)
    assert problems == {}
    expected = Large(1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    return read_bytes


@pytest.mark.parametrize("bucket_mib", [1, 32])
def test_replicas_are_read_once_and_by_all_ranks_alike(
    run_ranks: RunRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_mib: int
) -> None:
    monkeypatch.setattr("keepstep.checkpoint.sharing._BUCKET_BYTES", bucket_mib << 20)
    run_ranks(1, save_large, str(tmp_path))
    read = run_ranks(3, load_large_once, str(tmp_path))
    size_bytes = sum(path.stat().st_size for path in tmp_path.glob("steps/*/*.distcp"))
    assert sum(read) <= size_bytes
    assert max(read) - min(read) <= 2 << 20, "a block, and a short one"


def load_while_storage_fails(rank: int, uri: str) -> dict[int, str]:
    """Rank 1's reads fail in the middle of the load."""
    if rank == 1:
        real = FileReader.read_into

        def fail(self: FileReader, offset: int, buffer: memoryview) -> int:
            if self.size_bytes > 10 << 20 and offset > 14 << 20:
                raise OSError(5, "gone")
            return real(self, offset, buffer)

        FileReader.read_into = fail  # type: ignore[method-assign]
    _, problems = load_once(rank, uri, model=Large(5))
    return problems


def test_a_rank_that_cannot_read_ends_the_load_on_all_ranks(
    run_ranks: RunRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepstep.checkpoint.sharing._BUCKET_BYTES", 1 << 20)
    run_ranks(1, save_large, str(tmp_path))
    problems = run_ranks(3, load_while_storage_fails, str(tmp_path))
    assert problems == [{1: StorageUnavailable.__name__}] * 3


def load_damaged(rank: int, uri: str) -> dict[int, str]:
    return load_once(rank, uri, model=Large(5))[1]


def test_damage_is_found_by_the_one_who_reads_it_and_known_to_all(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(1, save_large, str(tmp_path))
    (path,) = tmp_path.glob("steps/*/*.distcp")
    with path.open("r+b") as file:
        file.seek((12 << 20) + 77)
        (byte,) = file.read(1)
        file.seek((12 << 20) + 77)
        file.write(bytes([byte ^ 1]))
    problems = run_ranks(3, load_damaged, str(tmp_path))
    assert problems[1:] == problems[:-1]
    assert list(problems[0].values()) == [CorruptCheckpointError.__name__]


def load_with_damage_on_the_way(rank: int, uri: str) -> dict[int, str]:
    """What rank 2 receives is not what was sent."""
    if rank == 2:
        real = ControlGroup.exchange

        def spoil(self: ControlGroup, sends: Any, receives: Any) -> None:
            receives = list(receives)
            real(self, sends, receives)
            receives[0][1][-1] ^= 1

        ControlGroup.exchange = spoil  # type: ignore[method-assign]
    return load_damaged(rank, uri)


def test_damage_on_the_way_is_not_taken_for_damage_of_the_checkpoint(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(1, save_large, str(tmp_path))
    problems = run_ranks(3, load_with_damage_on_the_way, str(tmp_path))
    assert problems == [{2: "CoordinationError"}] * 3


def resume_once(rank: int, uri: str) -> tuple[int, int, list[str]]:
    """The step resumed from, what was set aside, and the indexes that this rank has read."""
    read: list[str] = []
    real = LocalStorage.get

    def get(self: LocalStorage, key: str) -> bytes:
        if key.endswith(".index.json"):
            read.append(key.rpartition("/")[2])
        return real(self, key)

    LocalStorage.get = get  # type: ignore[method-assign]
    model = build("fsdp", seed=99)
    with open_session(uri, read_once=True) as session:
        session.track(model=model, optim=adamw(model))
        restored = session.restore()
    return restored.step, len(restored.skipped), read


def test_every_index_is_read_by_one_rank(run_ranks: RunRanks, tmp_path: Path) -> None:
    run_ranks(4, save, str(tmp_path), "fsdp")
    resumed = run_ranks(2, resume_once, str(tmp_path))
    assert [(step, skipped) for step, skipped, _ in resumed] == [(1, 0)] * 2
    shares = [["__0.index.json", "__2.index.json"], ["__1.index.json", "__3.index.json"]]
    assert [sorted(read) for _, _, read in resumed] == shares


def save_twice(rank: int, uri: str) -> None:
    model = build("fsdp")
    optimizer = adamw(model)
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        for _ in range(2):
            step(model, optimizer)
            session.tick()
            session.save()


def test_an_index_that_is_damaged_is_set_aside_by_all_ranks(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(2, save_twice, str(tmp_path))
    (path,) = tmp_path.glob("steps/*2-g*/__1.index.json")
    path.write_bytes(path.read_bytes().replace(b'"', b"'", 1))
    resumed = run_ranks(2, resume_once, str(tmp_path))
    assert [(step, skipped) for step, skipped, _ in resumed] == [(1, 1)] * 2


def resume_with_damage_on_the_way(rank: int, uri: str) -> str:
    """Rank 0 gets another index than the one that rank 1 has read."""
    if rank == 0:
        real = ControlGroup.gather

        def spoil(self: ControlGroup, value: Any) -> list[Any]:
            values = real(self, value)
            if (
                isinstance(value, dict)
                and value
                and all(isinstance(v, bytes) for v in value.values())
            ):
                values[1] = {at: data.replace(b"1", b"2", 1) for at, data in values[1].items()}
            return values

        ControlGroup.gather = spoil  # type: ignore[method-assign]
    model = build("fsdp", seed=99)
    with open_session(uri, read_once=True) as session:
        session.track(model=model, optim=adamw(model))
        try:
            session.restore()
        except CoordinationError as error:
            return str(error)
    return "restored"


def test_an_index_that_is_damaged_on_the_way_is_not_set_aside(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(2, save, str(tmp_path), "fsdp")
    told = run_ranks(2, resume_with_damage_on_the_way, str(tmp_path))
    assert all("the index of rank 1 was damaged between two ranks" in text for text in told)
    assert not list(tmp_path.glob("quarantine/*"))


def test_more_ranks_than_indexes_read_them_all(run_ranks: RunRanks, tmp_path: Path) -> None:
    run_ranks(1, save, str(tmp_path), "fsdp")
    resumed = run_ranks(2, resume_once, str(tmp_path))
    assert [read for _, _, read in resumed] == [["__0.index.json"]] * 2
