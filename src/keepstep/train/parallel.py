"""How a model is spread over ranks: plain, DDP, FSDP or HSDP, chosen by name."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from keepstep.config import ParallelConfig
from keepstep.errors import ConfigError
from keepstep.train.gradients import GradientSums, divide_gradients, sum_in_float64
from keepstep.train.precision import PrecisionName, autocast_context, fsdp_policy
from keepstep.world import World


@dataclass(frozen=True, slots=True)
class Layout:
    """A strategy and the ranks along each dimension of its mesh."""

    strategy: Literal["plain", "ddp", "fsdp", "hsdp"]
    mesh: dict[str, int]

    def describe(self) -> dict[str, object]:
        """As JSON, for the manifest."""
        return {"strategy": self.strategy, "mesh": self.mesh}


@dataclass(frozen=True, slots=True)
class Parallel:
    """A model ready to train, whatever the strategy. Made by `parallelize`."""

    module: nn.Module
    """Owns the parameters, under the same names in every strategy: what is saved and optimized."""
    forward: nn.Module
    """What is called."""
    precision: PrecisionName
    device: torch.device
    is_exact: bool = False
    """Whether gradients are added in float64; then `finish_gradients` makes them means."""
    sums: GradientSums | None = None
    """Of an exact model whose parameters are not sharded."""

    @property
    def needs_padding(self) -> bool:
        """Whether passes are collective, so that all ranks must run equally many."""
        return self.sums is None

    def to_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Move a batch to where the model is."""
        inputs, targets = batch
        return (
            inputs.to(self.device, non_blocking=True),
            targets.to(self.device, non_blocking=True),
        )

    def computing(self) -> AbstractContextManager[object]:
        """Around a forward pass: the precision it runs in."""
        if isinstance(self.forward, FSDPModule):
            return nullcontext()  # FSDP casts by its own policy
        return autocast_context(self.precision, self.device)

    def reducing(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Around a forward and backward pass: gradients are reduced in the last of a step only."""
        if isinstance(self.forward, FSDPModule):
            self.forward.set_requires_gradient_sync(is_last)
        if isinstance(self.forward, DistributedDataParallel) and not is_last:
            return self.forward.no_sync()
        return nullcontext()

    def finish_gradients(self, num_slots: int) -> None:
        """In exact mode, make the sums over all slots of all ranks the gradient of the mean loss.

        *Ranks:* collective.
        """
        if self.sums is not None:
            self.sums.reduce()
        if self.is_exact:
            divide_gradients(self.module.parameters(), num_slots)


def plan_layout(config: ParallelConfig, world: World, device: torch.device) -> Layout:
    """Decide the layout. ``auto`` is plain for one rank, else FSDP on CUDA and DDP on CPU.

    A single process that no launcher started has no process group: it is plain in any case.

    *Raises:* ConfigError if the ranks do not fill the mesh.
    """
    strategy, size = config.strategy, world.world_size
    if strategy == "auto":
        strategy = "fsdp" if device.type == "cuda" else "ddp"
        if size == 1:
            return Layout("plain", {})
    if not dist.is_initialized():
        return Layout("plain", {})
    if strategy == "ddp":
        return Layout("ddp", {"replicate": size})
    if strategy == "fsdp":
        return Layout("fsdp", {"shard": size})
    shard = config.shard_size or world.local_world_size
    if size % shard:
        raise ConfigError(
            f"parallel.shard_size = {shard} does not divide the world size {size}: "
            "hsdp needs whole shard groups"
        )
    return Layout("hsdp", {"replicate": size // shard, "shard": shard})


def parallelize(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    layout: Layout,
    *,
    config: ParallelConfig,
    precision: PrecisionName,
    device: torch.device,
    is_exact: bool = False,
) -> Parallel:
    """Spread ``model`` over the ranks; the names of its parameters stay the same.

    Args:
        is_exact: whether gradients are added in float64, the same in any world. Replicas then need
            no DDP: its buckets are of the format of the parameters.
        blocks: parts of the model that are sharded, recomputed and compiled one by one.

    *Ranks:* collective. The model must hold the same values on all of them.
    """
    model.to(device)
    _checkpoint_activations(blocks, config.activation_checkpoint)
    if config.compile:
        for block in blocks:
            block.forward = torch.compile(block.forward)  # keeps names
    if layout.strategy in ("fsdp", "hsdp"):
        _shard(model, blocks, layout, fsdp_policy(precision, is_exact=is_exact), device)
        if is_exact:
            sum_in_float64(model)  # type: ignore[arg-type]
        return Parallel(model, model, precision, device, is_exact)
    if is_exact:
        return Parallel(model, model, precision, device, is_exact, GradientSums(model.parameters()))
    forward = _replicate(model, device) if layout.strategy == "ddp" else model
    return Parallel(model, forward, precision, device)


def _checkpoint_activations(blocks: Sequence[nn.Module], which: int | str) -> None:
    """Let every n-th block (``full``: every one) forget its activations and compute them again."""
    if which == "none":
        return
    for block in blocks[:: 1 if which == "full" else int(which)]:
        # Wrapping forward instead of the module keeps the names of the parameters.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _replicate(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """DDP that reduces in the same order before and after a restart.

    By default its reducer rebuilds the buckets after the first backward of each process. From three
    ranks on, the order of a sum depends on the bucket: a resumed run would differ in the last bits
    from one that was not interrupted. With ``find_unused_parameters`` the buckets stay.
    """
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=True,
    )


def _shard(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    layout: Layout,
    policy: MixedPrecisionPolicy,
    device: torch.device,
) -> None:
    """FSDP in place: each block and the rest of the model gather their parameters separately."""
    mesh = init_device_mesh(
        device.type, tuple(layout.mesh.values()), mesh_dim_names=tuple(layout.mesh)
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
