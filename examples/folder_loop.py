"""A framework that writes its own checkpoints, kept: run it, kill it, run it again.

python examples/folder_loop.py runs/folders /tmp/scratch 60
"""

import json
import sys
from pathlib import Path

import torch

import keepstep

uri, scratch, total_steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])


class Framework:
    """Stands for any trainer with a checkpoint folder of its own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 1)
        self.step = 0

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), folder / "model.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"step": self.step}))

    def load(self, folder: Path) -> None:
        self.model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        self.step = json.loads((folder / "trainer_state.json").read_text())["step"]

    def train(self, steps: int) -> None:
        for _ in range(steps):
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(self.step))
            loss = (self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            self.model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.sub_(0.01 * parameter.grad)
            self.step += 1


framework = Framework()
with keepstep.open(uri, keep="last=2") as session:
    folder = session.fetch(scratch)
    if folder is not None:
        framework.load(folder)
    print(f"starts at step {framework.step}")
    while framework.step < total_steps:
        framework.train(steps=20)
        framework.save(scratch / "out")
        session.save_dir(scratch / "out", step=framework.step).committed()
print(f"ends at step {framework.step}, weight sum {framework.model.weight.sum().item():.8f}")
