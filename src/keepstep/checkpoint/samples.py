"""Whether ranks hold the same under one name: judged by samples, before a plan deals it out.

What is dealt out is written by parts on several ranks. If these hold different tensors, as without
a wrapper that keeps them alike, the checkpoint would be a blend that no rank ever had.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from awscrt.checksums import crc32c
from torch.distributed.tensor import DTensor

from keepstep.checkpoint.entries import Entries
from keepstep.checkpoint.host_memory import host_pieces
from keepstep.errors import ConfigError

_SAMPLE_BYTES = 16 << 10

Samples = Mapping[str, int]
"""CRC32C by name."""


def samples_of(entries: Entries, is_wanted: Callable[[str], bool]) -> Samples:
    """Checksums of the beginning and the end of each wanted tensor that is not sharded.

    *Ranks:* local. Tensors on a device are waited for.
    """
    return {
        fqn: _sample(entry)
        for fqn, entry in entries.items()
        if isinstance(entry, torch.Tensor) and not isinstance(entry, DTensor) and is_wanted(fqn)
    }


def check_alike(samples: Sequence[Samples]) -> None:
    """*Raises:* ``ConfigError`` naming the first tensor that ranks hold differently, and two."""
    first: dict[str, tuple[int, int]] = {}
    for rank, mine in enumerate(samples):
        for fqn, sample in mine.items():
            holder, expected = first.setdefault(fqn, (rank, sample))
            if sample != expected:
                raise ConfigError(
                    f"state entry {fqn} differs between ranks {holder} and {rank}, though neither "
                    "holds a shard of it: the checkpoint would be a blend of both. Wrap the module "
                    "in DistributedDataParallel or fully_shard, bring the ranks together before "
                    "each save, or make what belongs to single ranks one DTensor of them all"
                )


def _sample(tensor: torch.Tensor) -> int:
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return 0
    is_small = tensor.nbytes <= _SAMPLE_BYTES
    edges = [tensor] if is_small else [_edge(tensor, at_end=end) for end in (False, True)]
    crc = 0
    for edge in edges:
        for _, data in host_pieces(edge):
            crc = int(crc32c(data, crc))
    return crc


def _edge(tensor: torch.Tensor, *, at_end: bool) -> torch.Tensor:
    """The first or the last elements, in the order of their indices, whatever the strides."""
    while tensor.nbytes > _SAMPLE_BYTES:
        rows = _SAMPLE_BYTES // tensor[0].nbytes
        if rows == 0:
            tensor = tensor[-1 if at_end else 0]
        else:
            tensor = tensor[-rows:] if at_end else tensor[:rows]
    return tensor
