"""Any PyTorch loop, kept: run it, kill it, run it again, with torchrun or without.

python examples/plain_loop.py runs/plain 200
keepstep run --nproc-per-node 2 examples/plain_loop.py runs/plain 400
torchrun --standalone --nproc-per-node 2 examples/plain_loop.py runs/plain 400
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import keepstep

uri, total_steps = sys.argv[1], int(sys.argv[2])
if "RANK" in os.environ:
    dist.init_process_group("gloo")

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
optim = torch.optim.AdamW(model.parameters(), lr=1e-2)
sched = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 1000)

with keepstep.open(uri, every="50steps") as session:
    session.track(model=model, optim=optim, sched=sched)
    restored = session.restore()
    print(f"rank {session.world.rank} starts at step {restored.step}")
    while session.step < total_steps:
        inputs = torch.randn(16, 8)
        loss = (wrapped(inputs) - inputs.sum(1, keepdim=True).sin()).square().mean()
        loss.backward()
        with session.guard():
            optim.step()
            sched.step()
            optim.zero_grad(set_to_none=True)
        if session.tick(samples=16 * session.world.world_size, loss=loss.detach()):
            break
print(f"rank {session.world.rank} ends at step {session.step}")
if dist.is_initialized():
    dist.destroy_process_group()
if session.stopped:  # preempted, say: the code tells the launcher that the job is not complete
    sys.exit(session.stopped.exit_code)
