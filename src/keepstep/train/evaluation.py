"""Losses that do not depend on how many ranks computed them."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from keepstep.train.parallel import Parallel
from keepstep.train.tasks import Task
from keepstep.world import World

_SAMPLES_PER_FORWARD = 32


@torch.no_grad()
def evaluate(
    parallel: Parallel,
    task: Task,
    world: World,
    *,
    num_samples: int,
    stop_is_due: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean loss over the first ``num_samples`` validation samples (or all there are).

    They are cut into the same chunks in any world and dealt out round robin. A rank that has one
    less repeats the last one, since with FSDP each forward is a collective. No random number is
    drawn.

    Returns ``None`` if it was broken off because ``stop_is_due``, which is asked once per round and
    answers alike on all ranks.

    *Ranks:* collective.
    """
    ids = np.arange(min(num_samples, task.num_validation_samples))
    chunks = np.array_split(ids, -(-len(ids) // _SAMPLES_PER_FORWARD))
    losses: dict[int, Tensor] = {}
    parallel.forward.eval()
    is_whole = True
    for first in range(0, len(chunks), world.world_size):
        if stop_is_due():
            is_whole = False
            break
        number = min(first + world.rank, len(chunks) - 1)
        batch = parallel.to_device(task.validation_batch(chunks[number]))
        with parallel.computing():
            loss = task.loss(parallel.forward, batch)
        if number == first + world.rank:
            losses[number] = loss * (len(chunks[number]) * len(chunks) / len(ids))
    parallel.forward.train()
    if isinstance(parallel.forward, FSDPModule):
        # A root that no backward follows keeps its gathered parameters: a save would find them in
        # the place of the shards.
        parallel.forward.reshard()
    return global_mean(losses, len(chunks), parallel.device) if is_whole else None


def global_mean(losses: Mapping[int, Tensor], count: int, device: torch.device) -> float:
    """Mean of ``count`` losses of which every rank holds some, by index.

    Each rank fills its own places in a vector of zeros: the sum over ranks is exact, and the mean
    is taken in the same order in any world.

    *Ranks:* collective.
    """
    vector = torch.zeros(count, dtype=torch.float64, device=device)
    for index, loss in losses.items():
        vector[index] = loss
    if dist.is_initialized():
        dist.all_reduce(vector)
    return vector.mean().item()
