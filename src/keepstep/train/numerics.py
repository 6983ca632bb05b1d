"""What a run promises about its bits, and on what conditions.

=====  =====================================  =====================================
mode   the same bits                          how
=====  =====================================  =====================================
exact  at any world size up to the number of  gradients added in float64; random
       slots                                  generators seeded for each slot
fast   at the same world size                 the reductions of DDP and FSDP;
                                              generators seeded for each rank
=====  =====================================  =====================================
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from keepstep.config import Config
from keepstep.errors import ConfigError
from keepstep.train.parallel import Layout

_EXACT_DEVICES = ("cpu", "cuda")
"""With float64 and with deterministic kernels."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """The mode of a run, as `plan_numerics` decided."""

    mode: Literal["exact", "fast"]
    conditions: dict[str, object]
    """Part of the mathematics of the run: a resume that changes one is refused."""
    caveats: tuple[str, ...]
    """What could break the promise all the same."""

    @property
    def is_exact(self) -> bool:
        """Whether the bits are to be the same in any world."""
        return self.mode == "exact"

    def __str__(self) -> str:
        worlds = "any world size" if self.is_exact else "the same world size"
        doubts = "".join(f", unless {caveat}" for caveat in self.caveats)
        return f"numerics={self.mode}: the same bits at {worlds}{doubts}"


def plan_numerics(config: Config, layout: Layout, device: torch.device) -> Numerics:
    """Decide the mode. ``auto`` is exact on CPU and fast elsewhere.

    *Raises:* ConfigError if exact is asked for where there is no float64.
    """
    mode = config.train.numerics
    if mode == "auto":
        mode = "exact" if device.type == "cpu" else "fast"
    if mode == "fast":
        return Numerics(mode, {"train.numerics": mode}, ())
    if device.type not in _EXACT_DEVICES:
        raise ConfigError(
            f"train.numerics = exact needs float64, which {device.type} lacks: set it to fast, or "
            "train on CPU or CUDA"
        )
    conditions: dict[str, object] = {
        "train.numerics": mode,
        "train.threads": torch.get_num_threads(),  # a sum is cut into as many parts
        "device.type": device.type,
    }
    if config.train.precision != "fp32":
        is_sharded = layout.strategy in ("fsdp", "hsdp")
        conditions["precision.casts"] = "parameters" if is_sharded else "autocast"
    return Numerics(mode, conditions, tuple(_caveats(config, device)))


@contextmanager
def pinned_kernels(numerics: Numerics) -> Iterator[None]:
    """While the block runs, exact mode computes with deterministic kernels only.

    An operation that has none raises an error that names it. Fused attention is left out on CUDA:
    its backward pass adds in the order in which threads arrive.
    """
    if not numerics.is_exact:
        yield
        return
    is_cuda = numerics.conditions["device.type"] == "cuda"
    with _deterministic(), sdpa_kernel(SDPBackend.MATH) if is_cuda else nullcontext():
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    options: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # a debugging aid that costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        options.fill_uninitialized_memory = before[1]


def _caveats(config: Config, device: torch.device) -> Iterator[str]:
    if config.parallel.compile:
        yield "parallel.compile generates other kernels after a restart"
    if device.type == "cuda":
        yield "the model of the GPU or the version of CUDA changes"
