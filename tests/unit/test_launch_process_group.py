import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from keepstep.errors import ConfigError
from keepstep.launch.process_group import process_group
from keepstep.world import World

CPU = torch.device("cpu")

WORKER = """
import os, signal, sys
import torch
import torch.distributed as dist
from keepstep.launch.env import world_from
from keepstep.launch.process_group import process_group
world = world_from(os.environ)
with process_group(world, os.environ, torch.device("cpu"), timeout_seconds=30):
    one = torch.ones(1)
    dist.all_reduce(one)
    assert one.item() == world.world_size
    if world.rank == 1 and world.restart_count < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    os.write(1, f"rank {world.rank} whole after restart {world.restart_count}\\n".encode())
"""


def test_group_is_whole_after_each_restart(tmp_path: Path) -> None:
    """Rank 1 of 3 is killed in the first two incarnations; each costs one restart, no more."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "3", "--max-restarts", "2", str(script)]
    job = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert job.returncode == 0, job.stderr
    assert sorted(job.stdout.splitlines()) == [
        f"rank {rank} whole after restart 2" for rank in range(3)
    ]


def test_process_without_launcher_has_no_group() -> None:
    with process_group(World(), {}, CPU, timeout_seconds=1):
        assert not dist.is_initialized()


def test_store_shared_by_several_nodes_is_refused_with_the_remedy() -> None:
    environ = dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | dict.fromkeys(
        ("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"
    )
    environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    world = World(rank=0, world_size=2, num_nodes=2)
    group = process_group(world, environ, CPU, timeout_seconds=1)
    with pytest.raises(ConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        group.__enter__()
