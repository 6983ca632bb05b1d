"""``keepstep import``: files as tutorials write them become the start of a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from keepstep import open as open_session
from keepstep.commit.catalog import Catalog
from keepstep.storage.local import LocalStorage

Keepstep = Callable[..., tuple[int, str, str]]


def make() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 1))
    optim = AdamW(model.parameters(), lr=0.02)
    return model, optim, torch.optim.lr_scheduler.StepLR(optim, 2)


def steps(model: nn.Module, optim: torch.optim.Optimizer, sched: Any, count: int) -> list[float]:
    losses = []
    for _ in range(count):
        loss = model(torch.ones(4, 3) * torch.arange(4.0)[:, None]).square().mean()
        loss.backward()
        optim.step()
        sched.step()
        optim.zero_grad()
        losses.append(loss.item())
    return losses


def write(path: Path, model: nn.Module, optim: Any, sched: Any, **more: Any) -> None:
    content = {
        "epoch": 2,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optim.state_dict(),
        "scheduler_state_dict": sched.state_dict(),
        "loss": torch.tensor(0.5),
    }
    torch.save(content | more, path)


def test_training_goes_on_from_an_imported_file_bit_for_bit(
    tmp_path: Path, keepstep: Keepstep
) -> None:
    model, optim, sched = make()
    steps(model, optim, sched, 3)
    write(tmp_path / "old.pt", model, optim, sched)
    expected = steps(model, optim, sched, 4)

    uri = str(tmp_path / "run")
    code, out, err = keepstep("import", str(tmp_path / "old.pt"), uri, "--samples", "12")
    assert (code, err) == (0, "")
    assert "step 3" in out
    assert "model, optim, sched" in out

    model, optim, sched = make()
    steps(model, optim, sched, 1)
    with open_session(uri) as session:
        session.track(model=model, optim=optim, sched=sched)
        restored = session.restore()
        assert (restored.step, session.samples) == (3, 12)
        assert steps(model, optim, sched, 4) == expected


def test_numbers_become_metrics(tmp_path: Path, keepstep: Keepstep) -> None:
    write(tmp_path / "old.pt", *make(), step=9)
    uri = str(tmp_path / "run")
    code, out, _ = keepstep("import", str(tmp_path / "old.pt"), uri, "--json")
    assert code == 0
    assert json.loads(out)["objects"] == ["model", "optim", "sched"]
    catalog = Catalog(LocalStorage(uri))
    manifest = catalog.manifest(catalog.candidates()[0])
    assert (manifest.step, manifest.tags) == (9, ("imported",))
    assert manifest.metrics == {"epoch": 2.0, "loss": 0.5}


def test_names_that_the_optimizer_was_given_are_used(tmp_path: Path, keepstep: Keepstep) -> None:
    model, _, _ = make()
    backwards = list(model.named_parameters())[::-1]
    optim = SGD(backwards, lr=0.1, momentum=0.9)
    sched = torch.optim.lr_scheduler.StepLR(optim, 2)
    steps(model, optim, sched, 2)
    write(tmp_path / "old.pt", model, optim, sched)
    expected = steps(model, optim, sched, 2)
    uri = str(tmp_path / "run")
    assert keepstep("import", str(tmp_path / "old.pt"), uri, "--step", "2")[0] == 0

    model, _, _ = make()
    optim = SGD(list(model.named_parameters())[::-1], lr=0.1, momentum=0.9)
    sched = torch.optim.lr_scheduler.StepLR(optim, 2)
    with open_session(uri) as session:
        session.track(model=model, optim=optim, sched=sched)
        session.restore()
        assert steps(model, optim, sched, 2) == expected


def test_an_order_that_does_not_fit_is_refused_and_can_be_given(
    tmp_path: Path, keepstep: Keepstep
) -> None:
    model, _, _ = make()
    backwards = list(model.named_parameters())[::-1]
    optim = SGD([parameter for _, parameter in backwards], lr=0.1, momentum=0.9)
    sched = torch.optim.lr_scheduler.StepLR(optim, 2)
    steps(model, optim, sched, 2)
    write(tmp_path / "old.pt", model, optim, sched)
    arguments = ("import", str(tmp_path / "old.pt"), str(tmp_path / "run"), "--step", "2")
    code, _, err = keepstep(*arguments)
    assert code == 78
    assert "--parameters" in err
    assert not (tmp_path / "run").exists()

    (tmp_path / "names").write_text("\n".join(name for name, _ in backwards))
    assert keepstep(*arguments, "--parameters", str(tmp_path / "names"))[0] == 0


@pytest.mark.parametrize(
    ("content", "code", "named"),
    [
        ({"epoch": 1}, 78, "epoch"),
        ({"model_state_dict": {"w": torch.ones(2)}}, 78, "--step"),
        ([1, 2], 78, "list"),
        ({"model": nn.Linear(1, 1)}, 65, "without executing code"),
    ],
)
def test_rubbish_is_named(
    tmp_path: Path, keepstep: Keepstep, content: Any, code: int, named: str
) -> None:
    torch.save(content, tmp_path / "old.pt")
    got, _, err = keepstep("import", str(tmp_path / "old.pt"), str(tmp_path / "run"))
    assert got == code
    assert named in err
    assert "old.pt" in err


def test_a_run_that_has_checkpoints_is_left_alone(tmp_path: Path, keepstep: Keepstep) -> None:
    write(tmp_path / "old.pt", *make(), step=9)
    arguments = ("import", str(tmp_path / "old.pt"), str(tmp_path / "run"))
    assert keepstep(*arguments)[0] == 0
    before = sorted(map(str, (tmp_path / "run").rglob("*")))
    code, _, err = keepstep(*arguments)
    assert code == 78
    assert "another uri" in err
    assert sorted(map(str, (tmp_path / "run").rglob("*"))) == before


def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path, keepstep: Keepstep) -> None:
    model, optim, sched = make()
    steps(model, optim, sched, 1)
    infinite = {"best_val_loss": float("inf"), "last": torch.tensor(float("nan"))}
    write(tmp_path / "old.pt", model, optim, sched, **infinite)
    uri = str(tmp_path / "run")
    code, _, err = keepstep("import", str(tmp_path / "old.pt"), uri)
    assert (code, err) == (0, "")
    storage = LocalStorage(tmp_path / "run")
    (checkpoint,) = Catalog(storage).candidates()
    assert Catalog(storage).manifest(checkpoint).metrics == {"loss": 0.5, "epoch": 2.0}
