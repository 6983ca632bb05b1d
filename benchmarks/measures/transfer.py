"""The limit of a CUDA device: copies to and from the host, pinned and pageable."""

import torch
from torch import Tensor

from benchmarks.measures.roster import Roster

_SIZES_MIB = (1, 16, 256)
_NAME = "limit-transfer"


def measure(roster: Roster) -> None:
    """GB/s of one copy, by size, direction and kind of host memory. *Ranks:* one."""
    repetitions = roster.context.scenario.repetitions
    for size_mib in _SIZES_MIB:
        device = torch.ones(size_mib << 20, dtype=torch.uint8, device="cuda")
        pinned = torch.empty(size_mib << 20, dtype=torch.uint8, pin_memory=True)
        pageable = torch.ones(size_mib << 20, dtype=torch.uint8)
        for repetition in range(repetitions + 1):
            roster.rows.write(
                _NAME,
                f"copy {size_mib} MiB",
                repetition,
                to_pinned_gb_per_second=_gb_per_second(device, pinned),
                to_pageable_gb_per_second=_gb_per_second(device, pageable),
                from_pinned_gb_per_second=_gb_per_second(pinned, device),
                from_pageable_gb_per_second=_gb_per_second(pageable, device),
            )


def _gb_per_second(source: Tensor, target: Tensor) -> float:
    torch.cuda.synchronize()
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    target.copy_(source, non_blocking=True)
    ended.record()
    torch.cuda.synchronize()
    milliseconds: float = began.elapsed_time(ended)
    return source.nbytes / 1e6 / milliseconds
