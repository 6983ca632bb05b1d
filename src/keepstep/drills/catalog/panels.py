"""Who judges: the panels that drills of several families share."""

COMPARED = ("intact", "same_order", "same_bits")
"""The run is that of the uninterrupted one."""

SAME_WORLD = ("endings", "interrupted", "nothing_lost", *COMPARED)
"""A failure, then a start on as many ranks."""

RESCALED = (
    "endings",
    "interrupted",
    "nothing_lost",
    "intact",
    "same_order",
    "once_per_epoch",
    "hops_keep_state",
)
"""Starts on other numbers of ranks, whatever the numerics."""
