"""The process group of this incarnation of the job."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from keepstep.errors import ConfigError
from keepstep.launch.env import is_launched, round_from
from keepstep.observability.startup import PROCESS_GROUP, STARTUP
from keepstep.world import World


@contextmanager
def process_group(
    world: World, environ: Mapping[str, str], device: torch.device, *, timeout_seconds: float
) -> Iterator[None]:
    """The default group while the block runs; none for a process that no launcher started.

    *Ranks:* collective. *Blocks:* on the other ranks, and later each collective, at most
    ``timeout_seconds``.
    *Raises:* ConfigError if the launcher would let ranks read the addresses of dead ones.
    """
    if not is_launched(environ):
        yield
        return
    timeout = timedelta(seconds=timeout_seconds)
    is_cuda = device.type == "cuda"
    with STARTUP.during(PROCESS_GROUP):
        dist.init_process_group(
            # Control traffic (objects, flags) goes over gloo also where tensors go over NCCL.
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=_store(world, environ, timeout),
            rank=world.rank,
            world_size=world.world_size,
            timeout=timeout,
            device_id=device if is_cuda else None,
        )
    yield
    # Only after success: on the way out of an error, peers may be gone and a clean-up would wait.
    dist.destroy_process_group()


def _store(world: World, environ: Mapping[str, str], timeout: timedelta) -> Store:
    """The key-value store at MASTER_ADDR, where no key of an earlier incarnation can be read.

    keepstep's rendezvous has a fresh one for each round. A stock agent by default keeps one for all
    restarts, and restarted ranks would find the addresses of their dead predecessors in it. On one
    node a prefix per restart cures that. On several nodes there is no common number to use: restart
    counts differ between agents.
    """
    is_hosted_by_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    round_number = round_from(environ)
    if is_hosted_by_agent and world.num_nodes > 1 and round_number is None:
        raise ConfigError(
            f"{world.num_nodes} nodes share a rendezvous store that keeps the addresses of dead "
            "ranks: start torchrun with --rdzv-backend=keepstep, or set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it, on every node"
        )
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch exports it without saying so
        environ["MASTER_ADDR"],
        _port(environ),
        world_size=world.world_size,
        is_master=not is_hosted_by_agent and world.rank == 0,
        timeout=timeout,
        wait_for_workers=False,
    )
    if round_number is not None:
        return PrefixStore(f"round-{round_number}", store)
    return PrefixStore(f"restart-{world.restart_count}", store) if is_hosted_by_agent else store


def _port(environ: Mapping[str, str]) -> int:
    text = environ["MASTER_PORT"]
    if not text.isdecimal():
        raise ConfigError(f"MASTER_PORT = {text!r} in the environment: a port number is needed")
    return int(text)
