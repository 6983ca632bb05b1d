"""Digests of whole tensors from those of their chunks, which add up by exclusive or."""

from collections.abc import Mapping

from keepstep.drills.remains import Checkpoint, TensorKey

_TENSOR = "crc64:"


def whole_digests(chunks: Checkpoint | Mapping[TensorKey, str]) -> dict[str, str]:
    """By name; values are whole as they are."""
    digests = chunks.digests if isinstance(chunks, Checkpoint) else chunks
    totals: dict[str, int] = {}
    values: dict[str, str] = {}
    for (fqn, _), digest in digests.items():
        if digest.startswith(_TENSOR):
            totals[fqn] = totals.get(fqn, 0) ^ int(digest.removeprefix(_TENSOR), 16)
        else:
            values[fqn] = digest
    return values | {fqn: f"{_TENSOR}{total:016x}" for fqn, total in totals.items()}
