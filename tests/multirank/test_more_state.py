"""State beside model, optimizer and schedule: it moves the loss as well, or what is reported."""

from pathlib import Path
from typing import Any

import torch
from models import assert_equal, full_state, open_session
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import keepstep
from rank_processes import RunRanks


class TrackerRun:
    """What a dashboard needs to go on in the same run."""

    def __init__(self) -> None:
        self.id = "new"

    def state_dict(self) -> dict[str, str]:
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, str]) -> None:
        self.id = state["id"]


def train(rank: int, uri: str, steps: int, *, each_afresh: bool) -> dict[str, Any]:
    """``steps`` steps, in one session or in one each; what is there at the end."""
    for _ in range(steps if each_afresh else 1):
        torch.manual_seed(rank)
        model = nn.Linear(5, 3)
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        optim = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        early = keepstep.EarlyStopping("loss:min", patience=3)
        tracker = TrackerRun()
        with open_session(uri) as session:
            session.track(model=wrapped, ema=ema, optim=optim, early=early, tracker=tracker)
            session.restore()
            for _ in range(1 if each_afresh else steps):
                loss = wrapped(torch.ones(2, 5) * (session.step + 1)).square().mean()
                loss.backward()
                optim.step()
                optim.zero_grad()
                ema.update_parameters(model)
                early.observe(float(session.step % 2), step=session.step)
                tracker.id = f"run-{session.step // 3}"
                session.tick(loss=loss.detach())
    assert session.step == steps
    others = {"early": early.state_dict(), "tracker": tracker.state_dict()}
    return full_state(model=wrapped, ema=ema, optim=optim) | others


def test_averaged_weights_patience_and_run_ids_go_on(run_ranks: RunRanks, tmp_path: Path) -> None:
    whole = run_ranks(2, in_one, str(tmp_path / "whole"))[0]
    pieces = run_ranks(2, in_pieces, str(tmp_path / "pieces"))[0]
    assert whole[".ema.n_averaged"].item() == 6
    assert whole["tracker"] == {"id": "run-1"}
    assert not torch.equal(whole[".ema.module.weight"], whole[".model.weight"])
    assert_equal(whole, pieces)


def in_one(rank: int, uri: str) -> dict[str, Any]:
    return train(rank, uri, 6, each_afresh=False)


def in_pieces(rank: int, uri: str) -> dict[str, Any]:
    return train(rank, uri, 6, each_afresh=True)
