"""Stepping over the newest checkpoint: only when the launcher says so, and once."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import keepstep
from keepstep.commit.catalog import Catalog, Status
from keepstep.elastic.orders import order_step_over, take_step_over
from keepstep.storage.local import LocalStorage


@pytest.fixture(autouse=True)
def no_order_left() -> Iterator[None]:
    yield
    take_step_over()


def _train(run: Path, *, until: int, resume: str | int = "auto") -> keepstep.Restored:
    with keepstep.open(str(run), every=10, mode="sync", resume=resume) as session:
        restored = session.track(model=torch.nn.Linear(2, 2)).restore()
        while session.step < until:
            session.tick(samples=1)
    return restored


def _quarantined(run: Path) -> dict[int, str]:
    entries = Catalog(LocalStorage(run)).entries()
    return {e.id.step: e.reason or "" for e in entries if e.status is Status.QUARANTINED}


def test_the_newest_is_set_aside_and_the_one_before_it_is_resumed_from(tmp_path: Path) -> None:
    _train(tmp_path, until=20)
    order_step_over()
    restored = _train(tmp_path, until=10)
    assert restored.step == 10
    assert [skipped.checkpoint.step for skipped in restored.skipped] == [20]
    assert list(_quarantined(tmp_path)) == [20]
    assert "launcher" in _quarantined(tmp_path)[20]
    assert _train(tmp_path, until=10).step == 10, "and no other one later"


def test_the_only_checkpoint_is_kept(tmp_path: Path) -> None:
    _train(tmp_path, until=10)
    order_step_over()
    assert _train(tmp_path, until=10).step == 10
    assert _quarantined(tmp_path) == {}


def test_one_is_set_aside_and_no_more_until_there_is_another_commit(tmp_path: Path) -> None:
    _train(tmp_path, until=30)
    order_step_over()
    assert _train(tmp_path, until=20).step == 20
    order_step_over()
    assert _train(tmp_path, until=20).step == 20, "the checkpoint was not the reason"
    assert list(_quarantined(tmp_path)) == [30]
    _train(tmp_path, until=40)
    order_step_over()
    assert _train(tmp_path, until=20).step < 40
    assert list(_quarantined(tmp_path)) == [30, 40]


def test_a_step_that_was_asked_for_is_not_stepped_over(tmp_path: Path) -> None:
    _train(tmp_path, until=20)
    order_step_over()
    assert _train(tmp_path, until=20, resume=20).step == 20
    assert _quarantined(tmp_path) == {}


@pytest.mark.parametrize(("agent", "is_asked"), [("1", True), (None, False)])
def test_only_the_launcher_can_ask(
    monkeypatch: pytest.MonkeyPatch, agent: str | None, *, is_asked: bool
) -> None:
    from keepstep.elastic import watchdog
    from keepstep.launch import worker

    monkeypatch.setattr(watchdog, "_installed", None)
    monkeypatch.setattr(worker, "die_with", lambda _: None)
    environ = {worker.STEP_OVER: "1"} | ({worker.AGENT: agent} if agent else {})
    worker.begin_worker(environ)
    assert take_step_over() == is_asked


@pytest.mark.parametrize(("agent", "cause"), [("1", "rank 1 was killed"), (None, None)])
def test_the_ledger_says_why_workers_were_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, agent: str | None, cause: str | None
) -> None:
    from keepstep.elastic import orders, watchdog
    from keepstep.launch import worker

    monkeypatch.setattr(watchdog, "_installed", None)
    monkeypatch.setattr(orders, "_cause", None)
    monkeypatch.setattr(worker, "die_with", lambda _: None)
    environ = {worker.CAUSE: "rank 1 was killed"} | ({worker.AGENT: agent} if agent else {})
    worker.begin_worker(environ)
    _train(tmp_path, until=1)
    lines = (tmp_path / "ledger/g000001/rank-00000.jsonl").read_text().splitlines()
    (begun,) = [event for event in map(json.loads, lines) if event["event"] == "generation"]
    assert begun["cause"] == cause
