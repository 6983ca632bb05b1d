"""Number formats: parameters stay float32, what is computed may be narrower.

=====  ============================  ================================  ==========
name   plain and DDP                 FSDP                              loss scale
=====  ============================  ================================  ==========
fp32   as is                         as is                             none
bf16   autocast to bfloat16          parameters gathered as bfloat16,  none
                                     gradients reduced in float32
                                     (float64 in exact mode)
fp16   autocast to float16           the same with float16             dynamic
=====  ============================  ================================  ==========
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch.amp import GradScaler, autocast
from torch.distributed.fsdp import MixedPrecisionPolicy

PrecisionName = Literal["fp32", "bf16", "fp16"]
_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_context(
    precision: PrecisionName, device: torch.device
) -> AbstractContextManager[object]:
    """What the forward pass of a model runs in that is not wrapped by FSDP."""
    dtype = _NARROW.get(precision)
    return autocast(device.type, dtype=dtype) if dtype else nullcontext()


def fsdp_policy(precision: PrecisionName, *, is_exact: bool) -> MixedPrecisionPolicy:
    """What FSDP gathers and reduces in."""
    reduce_dtype = torch.float64 if is_exact else torch.float32
    return MixedPrecisionPolicy(param_dtype=_NARROW.get(precision), reduce_dtype=reduce_dtype)


def make_scaler(precision: PrecisionName, device: torch.device) -> GradScaler | None:
    """The loss scaler of fp16; the other formats need none.

    Ranks must agree on whether a step is skipped. They do: DDP has averaged the gradients, so an
    overflow on one rank is one on all; and for sharded gradients torch reduces ``found_inf`` over
    the device mesh.
    """
    return GradScaler(device.type) if precision == "fp16" else None
