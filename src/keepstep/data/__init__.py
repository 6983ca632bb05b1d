"""Which samples, in which order, and how they get to the training loop.

The order is a pure function of the seed and the number of samples consumed. The names below are the
public ones; docs/data.md shows them at work.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepstep.data.loader import Loader
    from keepstep.data.mixture import Mixture
    from keepstep.data.streams import StreamLoader
    from keepstep.data.token_dataset import TokenDataset

__all__ = ["Loader", "Mixture", "StreamLoader", "TokenDataset"]

_HOMES = {
    "Loader": "loader",
    "Mixture": "mixture",
    "StreamLoader": "streams",
    "TokenDataset": "token_dataset",
}


def __getattr__(name: str) -> Any:
    """The names above, imported when they are first used: preparing data needs no torch."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
