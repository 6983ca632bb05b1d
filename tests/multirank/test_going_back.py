"""The best weights again, and data that did harm left out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import open_session

import keepstep
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.skips import Skip, pass_over, read_skips
from keepstep.errors import CorruptCheckpointError, ExitCode, LossSpikeError, exit_code_of
from keepstep.storage.local import LocalStorage
from rank_processes import RunRanks


def begin(uri: str, **options: Any) -> tuple[keepstep.Session, torch.nn.Module]:
    model = torch.nn.Linear(2, 2)
    session = open_session(uri, **options)
    session.track(model=model)
    return session, model


def test_the_best_weights_come_back_and_the_step_stays(tmp_path: Path) -> None:
    session, model = begin(str(tmp_path))
    with session:
        session.restore()
        for value in (0.5, 0.2, 0.4):
            with torch.no_grad():
                model.weight.fill_(value)
            session.tick(val_loss=value)
            session.save().committed()
        best = session.load_best("val_loss:min", only=["model"])
        assert best is not None
        assert (best.step, session.step) == (2, 3)
        assert torch.equal(model.weight, torch.full((2, 2), 0.2))
        assert session.load_best("accuracy:max") is None


def test_a_checkpoint_that_cannot_be_read_is_not_the_best(tmp_path: Path) -> None:
    session, _ = begin(str(tmp_path))
    with session:
        session.restore()
        for value in (0.2, 0.5):
            session.tick(val_loss=value)
            session.save().committed()
        first = Catalog(LocalStorage(tmp_path)).candidates()[-1]
        (tmp_path / first.key("manifest.json")).write_bytes(b"rubbish")
        best = session.load_best("val_loss:min", only=["model"])
        assert best is not None
        assert best.step == 2


def spike(rank: int, uri: str) -> str:
    session, _ = begin(uri, mode="sync")
    with session:
        session.restore()
        for _ in range(5):
            session.tick(samples=10)
            session.save()
        with pytest.raises(LossSpikeError) as caught:
            session.leave_out(25, 60, reason="the loss is nan")
        assert exit_code_of(caught.value) == ExitCode.TRANSIENT
    return str(caught.value)


def go_on(rank: int, uri: str) -> list[int]:
    session, _ = begin(uri, mode="sync")
    with session:
        session.restore()
        positions = [session.samples]
        for _ in range(3):
            session.skip_marked()
            session.tick(samples=10)
            positions.append(session.samples)
    return positions


def test_training_resumes_before_the_data_and_leaves_it_out(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    messages = run_ranks(2, spike, str(tmp_path))
    assert len(set(messages)) == 1
    assert "step 6: the loss is nan. Samples 25 to 60" in messages[0]
    assert run_ranks(2, go_on, str(tmp_path)) == [[20, 30, 70, 80]] * 2
    statuses = [entry.status for entry in Catalog(LocalStorage(tmp_path)).entries()]
    assert statuses.count(Status.SUPERSEDED) == 3, "they are still there"
    assert run_ranks(1, go_on, str(tmp_path)) == [[80, 90, 100, 110]]


def test_without_a_checkpoint_that_old_the_newest_is_taken(tmp_path: Path) -> None:
    session, _ = begin(str(tmp_path), mode="sync")
    with pytest.raises(LossSpikeError, match="the newest checkpoint"), session:
        session.restore()
        session.tick(samples=10)
        session.save()
        session.leave_out(-30, 20, reason="it leapt")
    assert read_skips(LocalStorage(tmp_path)) == (Skip(0, 20),)


def test_stretches_may_touch_and_overlap() -> None:
    skips = [Skip(30, 50), Skip(10, 30), Skip(40, 60), Skip(90, 95)]
    assert [pass_over(at, skips) for at in (5, 10, 29, 45, 60, 92)] == [5, 60, 60, 60, 60, 95]


def test_a_damaged_mark_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    session, _ = begin(str(tmp_path))
    session.close()
    storage = LocalStorage(tmp_path)
    storage.put("skips/000000000000010-000000000000020.json", b"{}")
    with pytest.raises(CorruptCheckpointError, match="skips/"):
        read_skips(storage)
