"""The public API as its users type it. Only type-checked, never run."""

import sys
from pathlib import Path

import torch

import keepstep
import keepstep.data


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    with keepstep.open(
        "runs/example", every="10min", resume="auto", seed=1, mathematics={"lr": 0.1}
    ) as session:
        session.track(model=model, optim=optimizer).track(other=optimizer)
        restored: keepstep.Restored = session.restore()
        if restored.lost is not None:
            steps: int = restored.lost.steps
            del steps
        while session.step < 10:
            loss = model(torch.zeros(1)).sum()
            loss.backward()
            with session.guard():
                optimizer.step()
            stop: keepstep.Stop | None = session.tick(samples=8, tokens=512, loss=loss, lr=0.1)
            if stop:
                break
        save: keepstep.Save = session.save(tags=("release",))
        save.staged()
        return save.committed().step


def load(model: torch.nn.Module) -> None:
    keepstep.load("runs/example/steps/000000000010-g000001-3f9cab12cd34", model=model)
    keepstep.open("runs/example", resume=100).close()
    keepstep.open("runs/example", resume="sometimes")  # type: ignore[arg-type]  # not a rule


def data() -> None:
    loader = keepstep.data.Loader(range(100), global_size=8, num_workers=2)
    with keepstep.open("runs/example") as session:
        session.track(data=loader)
    for batch, weight in loader.passes():
        del batch
        share: float = weight
        del share


def options(model: torch.nn.Module) -> None:
    sources = keepstep.NoticeSources(grace_seconds=20.0, file=Path("notice"), cloud="aws")
    with (
        keepstep.Preemption(sources) as preemption,
        keepstep.open(
            "s3://bucket/run",
            mode="overlap",
            keep="last=3,every=1h,best=val_loss:min:2",
            init_from="weights.safetensors",
            when_failing="pause",
            preemption=preemption,
        ) as session,
    ):
        early = keepstep.EarlyStopping("val_loss:min", patience=3)
        session.track(model=model, early=early)
        restored = session.restore(
            strict="shape",
            rename={"model.a": "model.b"},
            skip=["model.head"],
            only=["model"],
            cast=True,
        )
        left: tuple[str, ...] = restored.left
        fresh: bool = restored.fresh
        with session.phase("eval"):
            if session.stop_is_due() or early.observe(0.5, step=session.step):
                best = session.load_best("val_loss:min", only=["model"])
                step: int | None = best.step if best else None
                del step
        stopped: keepstep.Stop | None = session.stopped
        if stopped is not None:
            sys.exit(stopped.exit_code)
        session.request_stop("enough")
        session.record("note", fields=[1, 2])
        del left, fresh
    session.restore(strict="names")  # type: ignore[arg-type]  # no such strictness
    keepstep.NoticeSources(cloud="oracle")  # type: ignore[arg-type]  # not asked


def folders() -> None:
    with keepstep.open("runs/folders", keep="last=2") as session:
        folder: Path | None = session.fetch("scratch")
        save = session.save_dir("out", step=100, tags=("nightly",), val_loss=0.25)
        save.committed()
        del folder


def spikes(session: keepstep.Session) -> int:
    if session.skip_marked() > 100:
        session.leave_out(10, 20, reason="the loss is nan")
        return "never"  # type: ignore[unreachable]
    return session.samples
