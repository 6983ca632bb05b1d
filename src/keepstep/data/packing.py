"""Which documents share a window."""

import numpy as np
from numpy.typing import NDArray


def pack_documents(starts: NDArray[np.uint64], end: int, window: int) -> NDArray[np.uint64]:
    """Where to cut a row of documents so that pieces hold whole documents, ``window`` at most.

    Documents stay in their order: each piece takes all that still fit. A document longer than a
    window is cut into windows, and what remains of it is packed with those that follow.

    Args:
        starts: Where each document begins, ascending.
        end: Where the last one ends.

    Returns:
        Where each piece begins, and ``end``.
    """
    if not len(starts):
        return np.zeros(1, dtype=np.uint64)
    cuts = [int(starts[0])]
    while cuts[-1] < end:
        furthest = cuts[-1] + window
        if furthest >= end:
            cuts.append(end)
            break
        # The last document that begins no later than the window ends: it is cut off before, unless
        # the whole window lies within it.
        last = int(starts[np.searchsorted(starts, np.uint64(furthest), side="right") - 1])
        cuts.append(last if last > cuts[-1] else furthest)
    return np.array(cuts, dtype=np.uint64)
