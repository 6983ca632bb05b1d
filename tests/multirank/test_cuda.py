"""The same path on a GPU: state on the device, NCCL beside gloo."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import assert_equal, full_state, open_session
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("is_fsdp", [False, True], ids=["plain", "fsdp"])
def test_state_on_a_device_comes_back_with_its_random_stream(tmp_path: Path, is_fsdp: bool) -> None:
    if is_fsdp:
        store = dist.HashStore()
        dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        saved, went_on = run(str(tmp_path), seed=0, is_fsdp=is_fsdp, steps=3)
        loaded, continued = run(str(tmp_path), seed=9, is_fsdp=is_fsdp, steps=3)
        assert_equal(saved, loaded)
        assert torch.equal(went_on, continued)
    finally:
        if is_fsdp:
            dist.destroy_process_group()


def run(
    uri: str, *, seed: int, is_fsdp: bool, steps: int
) -> tuple[dict[str, object], torch.Tensor]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.5)).cuda()
    if is_fsdp:
        fully_shard(model, mesh=init_device_mesh("cuda", (1,)))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        while session.step < steps:
            model(torch.randn(8, 64, device="cuda")).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            session.tick()
        if session.latest is None or session.latest.step < session.step:
            session.save()
        return full_state(model=model, optim=optimizer), torch.randn(4, device="cuda")
