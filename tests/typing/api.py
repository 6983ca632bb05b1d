"""The public API as its users type it. Only type-checked, never run."""

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
