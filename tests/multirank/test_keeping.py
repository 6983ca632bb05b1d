"""A session that removes what it need not keep."""

from pathlib import Path
from typing import Any

import pytest
from models import adamw, build, step

import keepstep
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.layout import ledger_key
from keepstep.commit.pruning import Pruner
from keepstep.errors import ConfigError, StorageUnavailable
from keepstep.observability.ledger import read_ledger
from keepstep.storage.local import LocalStorage
from rank_processes import RunRanks

LOSSES = [9.0, 3.0, 8.0, 7.0, 1.0, 6.0, 5.0]
"""Of steps 1 to 7."""


def train(rank: int, uri: str, keep: str, steps: int, fails: bool = False) -> list[int]:
    """Save every step; where each start went on."""
    if fails:
        Pruner.prune = fail  # type: ignore[method-assign]  # this process is the test's own
    model = build("fsdp")
    optimizer = adamw(model)
    with keepstep.open(uri, every=1, keep=keep) as session:
        restored = session.track(model=model, optim=optimizer).restore()
        while session.step < steps:
            step(model, optimizer)
            session.tick(samples=2, loss=LOSSES[session.step])
    return [restored.step, session.step]


def fail(*_: Any) -> None:
    raise StorageUnavailable("unplugged")


def committed(uri: Path) -> list[int]:
    entries = Catalog(LocalStorage(uri)).entries()
    assert {entry.status for entry in entries} == {Status.COMMITTED}
    return [entry.id.step for entry in entries]


def pruned(uri: Path, generation: int) -> list[dict[str, Any]]:
    events = read_ledger((uri / ledger_key(generation, 0)).read_bytes())
    return [event for event in events if event["event"] == "prune"]


def test_what_the_policy_keeps_is_left_and_the_resume_source_too(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    keep = "last=2,best=loss:min"
    assert run_ranks(2, train, str(tmp_path), keep, 4) == [[0, 4]] * 2
    assert committed(tmp_path) == [2, 3, 4], "the best of the first four is step 2"
    assert run_ranks(2, train, str(tmp_path), keep, 7) == [[4, 7]] * 2
    assert committed(tmp_path) == [4, 5, 6, 7], "it went on from step 4; the best is step 5"
    removed = [name for event in pruned(tmp_path, 2) for name in event["removed"]]
    assert [int(name[:12]) for name in removed] == [2, 3]


def test_by_default_nothing_is_removed(run_ranks: RunRanks, tmp_path: Path) -> None:
    run_ranks(1, train, str(tmp_path), "all", 3)
    assert committed(tmp_path) == [1, 2, 3]


def test_training_goes_on_if_nothing_can_be_removed(run_ranks: RunRanks, tmp_path: Path) -> None:
    assert run_ranks(2, train, str(tmp_path), "last=1", 3, True) == [[0, 3]] * 2
    assert committed(tmp_path) == [1, 2, 3]
    assert pruned(tmp_path, 1) == []


def test_a_policy_that_cannot_be_read_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="is not a rule of what to keep"):
        keepstep.open(str(tmp_path / "run"), keep="lats=3")
    assert not (tmp_path / "run").exists()
