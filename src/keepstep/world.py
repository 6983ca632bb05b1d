"""Who this process is among its peers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class World:
    """One process's place in its process group.

    Built once by ``launch``, handed down, never re-read.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node: int = 0
    num_nodes: int = 1
    restart_count: int = 0
    """torchelastic's restart count on this node.

    It differs between nodes: never an incarnation number.
    """

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank publishes."""
        return self.rank == 0
