"""What the nodes agree on: one value in the store, changed by compare-and-set."""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Roster:
    """Who is in the running round, who wants to be in the next one.

    A node is named ``address/pid/token``; the token makes a restarted agent a new node.
    """

    round: int = 0
    """The last round that was formed; it only grows. 0: none yet."""
    formed: tuple[str, ...] = ()
    """The nodes of that round when it was formed, by rank."""
    members: tuple[str, ...] = ()
    """Those of them that are still in it."""
    joining: tuple[str, ...] = ()
    """Nodes that wait for the next round, in order of arrival."""
    ready: tuple[str, ...] = ()
    """Members that have reached the store at ``meeting_point``."""
    meeting_point: str = ""
    """``host:port`` of the store that the workers of this round start from."""
    is_called: bool = False
    """Whether the members have been asked to join the next round, for the sake of newcomers."""
    is_complete: bool = False
    """Whether the job is done, and no round will follow."""

    @property
    def newcomers(self) -> tuple[str, ...]:
        return tuple(node for node in self.joining if node not in self.formed)

    @property
    def returned(self) -> tuple[str, ...]:
        """Nodes of the running round that have stopped their workers and wait for the next."""
        return tuple(node for node in self.joining if node in self.formed)

    @property
    def departed(self) -> tuple[str, ...]:
        """Nodes of the running round that have left or fallen silent."""
        present = {*self.members, *self.joining}
        return tuple(node for node in self.formed if node not in present)

    @property
    def nodes(self) -> tuple[str, ...]:
        """All that are to be watched."""
        return self.members + self.joining

    @property
    def is_whole(self) -> bool:
        """Whether every node of the round has reached its meeting point, and is still there."""
        present = set(self.ready) & set(self.members)
        return self.round > 0 and present >= set(self.formed)

    def with_joining(self, node: str) -> "Roster":
        if node in self.joining:
            return self
        left = self.without([node])
        return replace(left, joining=(*left.joining, node))

    def without(self, nodes: Collection[str]) -> "Roster":
        return replace(
            self,
            members=tuple(node for node in self.members if node not in nodes),
            joining=tuple(node for node in self.joining if node not in nodes),
        )

    def with_round_formed(self, max_nodes: int) -> "Roster":
        """The next round, of those that came first; ranks go by name, so neighbors stay so."""
        # Who was in the last round goes first: surplus nodes never push out a node with its data.
        chosen = (self.returned + self.newcomers)[:max_nodes]
        return Roster(
            round=self.round + 1,
            formed=tuple(sorted(chosen, key=_natural)),
            members=tuple(sorted(chosen, key=_natural)),
            joining=tuple(node for node in self.joining if node not in chosen),
        )

    def with_ready(self, node: str) -> "Roster":
        return self if node in self.ready else replace(self, ready=(*self.ready, node))

    def with_meeting_point(self, address: str) -> "Roster":
        return replace(self, meeting_point=address)

    def called(self) -> "Roster":
        return replace(self, is_called=True)

    def completed(self) -> "Roster":
        return replace(self, is_complete=True)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Roster":
        """*Raises:* ValueError, TypeError if this is no roster."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(text).items()
        }
        return cls(**fields)


def restored(known: Roster | None, found: Roster | None) -> Roster:
    """What should be in the store, given what this node knew and what it finds there.

    A store that was replaced by an empty one knows less than the nodes do. What they know goes
    back, so that rounds keep counting; who came to the empty store first waits for the next one.
    """
    if found is None:
        return known or Roster()
    if known is None or found.round >= known.round:
        return found
    merged = known
    for node in found.nodes:
        if node not in known.members:
            merged = merged.with_joining(node)
    return merged


def address_of(node: str) -> str:
    return node.rsplit("/", 2)[0]


def in_words(nodes: Iterable[str]) -> str:
    """For a sentence that names nodes."""
    return ", ".join(sorted((address_of(node) for node in nodes), key=_natural)) or "none"


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """An order in which node10 comes after node9."""
    parts = re.findall(r"\d+|\D+", name)
    return [(p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts]
