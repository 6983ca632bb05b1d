"""Where two states differ."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def first_difference(name: str, one: Any, other: Any) -> str | None:
    """The dotted name of the first entry that differs, or ``None`` if all are equal, bit for bit.

    A list equals a tuple of the same items, and NaN equals NaN.
    """
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if _equal_tensors(one, other) else name
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        is_equal = one.dtype == other.dtype and one.tobytes() == other.tobytes()
        return None if is_equal and one.shape == other.shape else name
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return f"{name}.{min(map(str, one.keys() ^ other.keys()))}"
        found = (first_difference(f"{name}.{key}", one[key], other[key]) for key in one)
        return next((place for place in found if place is not None), None)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return name
        pairs = enumerate(zip(one, other, strict=True))
        found = (first_difference(f"{name}.{number}", *pair) for number, pair in pairs)
        return next((place for place in found if place is not None), None)
    return None if _equal_values(one, other) else name


def _equal_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """On the host, shape (bytes,): as numbers, zero equals minus zero."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _equal_values(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and bool(one == other)
