"""Which node a pod goes to, out of pools of nodes that grow."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from keepstep.testing.cluster.manifests import Manifest
from keepstep.testing.cluster.node import Node, Pool, fits


@dataclass(slots=True)
class Scheduler:
    """The nodes there are."""

    pools: Sequence[Pool]
    nodes: list[Node] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = [
            Node(f"{pool.name}-{number}", pool.name)
            for pool in self.pools
            for number in range(pool.nodes)
        ]

    def node(self, name: str) -> Node:
        """*Raises:* ``LookupError`` with the names there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise LookupError(f"no node {name!r}; there are {', '.join(n.name for n in self.nodes)}")

    def place(self, spec: Manifest, taken: Collection[str]) -> Node:
        """A node of the first pool that suits, one that is not ``taken``; a new one if need be.

        *Raises:* ``ValueError`` if no pool suits.
        """
        pool = next((p for p in self.pools if fits(p.labels, p.taints, spec)), None)
        if pool is None:
            raise ValueError("no pool of nodes suits: see nodeSelector, nodeAffinity, tolerations")
        members = [node for node in self.nodes if node.pool == pool.name]
        for node in members:
            if node.takes_pods and node.name not in taken:
                return node
        self.nodes.append(Node(f"{pool.name}-{len(members)}", pool.name))
        return self.nodes[-1]
