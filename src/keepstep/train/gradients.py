"""Gradients whose bits depend neither on the number of ranks nor on how parameters are sharded.

Every slot gives the same float32 (or narrower) gradient wherever it runs. Those are added in
float64, over the slots of a rank and over the ranks, rounded to the format of the parameter and
divided by the number of slots, once. A float64 holds a sum of float32 numbers exactly as long as
the largest is less than 2^29 / (number of slots) times the smallest; beyond that, the order shows
only if the sum lies within 2^-53 of halfway between two float32 numbers.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

_BUCKET_ELEMENTS = 4 * 2**20
"""32 MiB: large enough for the network, small enough that several are under way."""


class GradientSums:
    """Float64 sums of the gradients of replicated parameters.

    While it exists, a backward pass moves each gradient into its sum at once: no more than a few
    gradients are held beside the sums.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._buckets = [_Bucket(group) for group in _grouped(trained)]
        self._places = {
            parameter: (bucket, number)
            for bucket in self._buckets
            for number, parameter in enumerate(bucket.parameters)
        }
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._take)

    def reduce(self) -> None:
        """Add up over ranks, leave the sums in ``.grad``, and begin anew.

        A parameter that no slot of any rank used keeps the gradient ``None``, as in one process.

        *Ranks:* collective, if there is a process group.
        """
        if dist.is_initialized():
            works = [dist.all_reduce(bucket.flat, async_op=True) for bucket in self._buckets]
            for work in works:
                work.wait()
        for bucket in self._buckets:
            bucket.release()

    def _take(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        bucket, number = self._places[parameter]
        bucket.sums[number] += parameter.grad
        bucket.counts[number] += 1
        parameter.grad = None


class _Bucket:
    """Sums of some parameters, and how many gradients each has got, in one flat tensor."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(
            sum(sizes) + len(sizes), dtype=torch.float64, device=parameters[0].device
        )
        *sums, self.counts = self.flat.split([*sizes, len(sizes)])
        self.sums = [
            flat.view(parameter.shape) for flat, parameter in zip(sums, parameters, strict=True)
        ]

    def release(self) -> None:
        for parameter, total, count in zip(
            self.parameters, self.sums, self.counts.tolist(), strict=True
        ):
            if count:
                parameter.grad = total.to(parameter.dtype, copy=True)
        self.flat.zero_()


def sum_in_float64(module: FSDPModule) -> None:
    """Let FSDP add up and not average; the format is that of its precision policy.

    Not a divisor of our own: with a shard group of one rank, torch 2.13 would apply it twice.
    """
    for part in _fsdp_modules(module):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def divide_gradients(parameters: Iterable[nn.Parameter], divisor: int) -> None:
    """Sums to means. Zeros become positive: whether -0 survives depends on what it is added to."""
    for gradient in _gradients(parameters):
        local_part(gradient).div_(divisor).add_(0.0)


def exact_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """2-norm of all gradients: squares are added up in float64, the root is rounded to float32.

    *Ranks:* collective where gradients are sharded.

    Returns:
        A 0-d tensor, the same bits on all ranks and in every world.
    """
    gradients = list(_gradients(parameters))
    if not gradients:
        return torch.zeros(())
    norms = [
        torch.linalg.vector_norm(local_part(gradient), dtype=torch.float64)
        for gradient in gradients
    ]
    total = torch.stack(norms).square().sum()
    for group in _shard_groups(gradients[0]):
        dist.all_reduce(total, group=group)
    return total.sqrt().float()


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gradients(parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    return (gradient for p in parameters if (gradient := p.grad) is not None)


def _shard_groups(gradient: Tensor) -> list[dist.ProcessGroup]:
    """The groups over which it is cut; with HSDP, replicas are not among them."""
    if not isinstance(gradient, DTensor):
        return []
    mesh = gradient.device_mesh
    return [
        mesh.get_group(dimension)
        for dimension, placement in enumerate(gradient.placements)
        if isinstance(placement, Shard)
    ]


def _fsdp_modules(module: FSDPModule) -> Iterator[FSDPModule]:
    assert isinstance(module, nn.Module)
    return (part for part in module.modules() if isinstance(part, FSDPModule))


def _grouped(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    group: list[nn.Parameter] = []
    for parameter in parameters:
        if group and sum(p.numel() for p in group) + parameter.numel() > _BUCKET_ELEMENTS:
            yield group
            group = []
        group.append(parameter)
    if group:
        yield group
