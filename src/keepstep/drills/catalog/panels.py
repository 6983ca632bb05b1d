"""Who judges: the panels that drills of several families share."""

UNINTERRUPTED = ("intact", "same_order", "same_bits")
"""The run is that of the uninterrupted one."""

COMPARED = ("restored_exactly", *UNINTERRUPTED)
"""The same, with a start from a checkpoint."""

SAME_WORLD = ("endings", "interrupted", "nothing_lost", *COMPARED)
"""A failure, then a start on as many ranks."""

RESCALED = (
    "endings",
    "interrupted",
    "nothing_lost",
    "restored_exactly_elsewhere",
    "intact",
    "same_order",
    "once_per_epoch",
    "hops_keep_state",
)
"""Starts on other numbers of ranks, whatever the numerics."""
