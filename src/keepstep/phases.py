"""The six phases of a save: one vocabulary for failpoints, events, drills and documents."""

from enum import StrEnum


class Phase(StrEnum):
    """What a save is doing. The order of the members is the order of a save."""

    PLAN = "plan"
    """Who writes which piece of which tensor."""
    STAGE = "stage"
    """Device to host; when it ends, training may change the tensors again."""
    WRITE = "write"
    """Every rank streams its shards; durable when it ends."""
    ARRIVE = "arrive"
    """Each rank's record reaches the coordinator."""
    PUBLISH = "publish"
    """The coordinator creates the manifest: the step becomes real."""
    DEPART = "depart"
    """Every rank learns the outcome."""
