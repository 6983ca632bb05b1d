"""Quantities as Kubernetes writes them."""

import re

_UNITS = {
    "": 1.0,
    "m": 1e-3,
    **{unit: 10.0 ** (3 * power) for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": 2.0 ** (10 * power) for power, unit in enumerate("KMGTPE", 1)},
}
_FORM = re.compile(r"([0-9.]+)([A-Za-z]*)")


def size_of(quantity: object) -> float | None:
    """In bytes, or cores; ``None`` if it is no quantity."""
    match = _FORM.fullmatch(str(quantity))
    if match is None or match[2] not in _UNITS:
        return None
    try:
        return float(match[1]) * _UNITS[match[2]]
    except ValueError:
        return None
