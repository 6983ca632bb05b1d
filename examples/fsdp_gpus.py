"""FSDP on GPUs with a loop of one's own; without GPUs the same on CPUs.

torchrun --standalone --nproc-per-node 8 examples/fsdp_gpus.py s3://bucket/gpt-7 10000
keepstep run --nnodes 2:8 --rdzv-endpoint store:29400 --rdzv-id gpt-7 --nproc-per-node 8 \\
    examples/fsdp_gpus.py s3://bucket/gpt-7 10000
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import keepstep

uri, total_steps = sys.argv[1], int(sys.argv[2])
kind = "cuda" if torch.cuda.is_available() else "cpu"
if kind == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before anything is put on a GPU
dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
mesh = init_device_mesh(kind, (dist.get_world_size(),))

torch.manual_seed(0)
layers = [torch.nn.TransformerEncoderLayer(128, 4, batch_first=True) for _ in range(4)]
model = torch.nn.Sequential(*layers).to(kind)
for layer in model:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optim = torch.optim.AdamW(model.parameters(), lr=1e-3)  # after sharding

with keepstep.open(uri, every="10min", keep="last=3") as session:
    session.track(model=model, optim=optim)
    restored = session.restore()
    print(f"rank {session.world.rank} starts at step {restored.step}")
    while session.step < total_steps:
        inputs = torch.randn(8, 32, 128, device=kind)
        loss = (model(inputs) - inputs.roll(1, dims=1)).square().mean()
        loss.backward()
        with session.guard():
            optim.step()
            optim.zero_grad(set_to_none=True)
        # To read a tensor of a GPU waits for the step: not each time.
        metrics = {"loss": loss.detach()} if session.step % 10 == 9 else {}
        if session.tick(samples=8 * session.world.world_size, **metrics):
            break
print(f"rank {session.world.rank} ends at step {session.step}")
dist.destroy_process_group()
if session.stopped:  # preempted, say: the code tells the launcher that the job is not complete
    sys.exit(session.stopped.exit_code)
