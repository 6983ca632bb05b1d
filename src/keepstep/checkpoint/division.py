"""Who reads which block when several ranks need it: arithmetic only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

Needed = Mapping[str, Sequence[range]]
"""The blocks that one rank needs, by file, in merged ranges."""


class Part(NamedTuple):
    """Consecutive blocks of a file."""

    file: str
    numbers: range


@dataclass(frozen=True, slots=True)
class Bucket:
    """Blocks that go around together."""

    owner: int
    holders: tuple[int, ...]
    """The ranks that need them, the owner among them, ascending."""
    parts: tuple[Part, ...]

    @property
    def num_blocks(self) -> int:
        return sum(len(part.numbers) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Division:
    """Who reads what. The same on every rank."""

    alone: tuple[dict[str, list[range]], ...]
    """By rank: blocks that nobody else needs, by file, in merged ranges."""
    buckets: tuple[tuple[Bucket, ...], ...]
    """By owner, in the order in which they go around."""

    @property
    def num_rounds(self) -> int:
        return max(len(buckets) for buckets in self.buckets)

    def round(self, number: int) -> list[Bucket]:
        """The buckets of one round, at most one per owner."""
        return [buckets[number] for buckets in self.buckets if number < len(buckets)]


def divide(needed: Sequence[Needed], *, bucket_blocks: int) -> Division:
    """Give every block that several ranks need to one of them: balanced, and in runs.

    Args:
        needed: By rank.
        bucket_blocks: The most blocks in a bucket.
    """
    alone: list[dict[str, list[range]]] = [{} for _ in needed]
    shared: dict[tuple[int, ...], list[Part]] = {}
    for file in sorted({file for files in needed for file in files}):
        for numbers, holders in _segments([files.get(file, ()) for files in needed]):
            if len(holders) == 1:
                alone[holders[0]].setdefault(file, []).append(numbers)
            else:
                shared.setdefault(holders, []).append(Part(file, numbers))
    buckets: list[list[Bucket]] = [[] for _ in needed]
    loads = [0] * len(needed)
    for holders, parts in sorted(shared.items()):
        # The lightest first: a set with few blocks then evens out what came before.
        owners = sorted(holders, key=loads.__getitem__)
        share = -(-sum(len(part.numbers) for part in parts) // len(owners))
        for owner, owned in zip(owners, _cut_parts(parts, share), strict=False):
            for group in _cut_parts(owned, bucket_blocks):
                buckets[owner].append(Bucket(owner, holders, tuple(group)))
                loads[owner] += buckets[owner][-1].num_blocks
    return Division(tuple(alone), tuple(tuple(found) for found in buckets))


def _segments(needed: Sequence[Sequence[range]]) -> Iterator[tuple[range, tuple[int, ...]]]:
    """Ranges of one file's blocks, ascending, each with the ranks that need all of it."""
    changes: dict[int, set[int]] = {}
    for rank, found in enumerate(needed):
        for numbers in found:
            for edge in (numbers.start, numbers.stop):
                changes.setdefault(edge, set()).symmetric_difference_update({rank})
    holders: set[int] = set()
    for edge, following in pairwise(sorted(changes)):
        holders ^= changes[edge]
        if holders:
            yield range(edge, following), tuple(sorted(holders))


def _cut_parts(parts: Iterable[Part], num_blocks: int) -> Iterator[list[Part]]:
    """Cut parts, in order, into groups of ``num_blocks``; the last may have fewer."""
    group: list[Part] = []
    room = num_blocks
    for file, numbers in parts:
        rest = numbers
        while rest:
            taken, rest = rest[:room], rest[room:]
            group.append(Part(file, taken))
            room -= len(taken)
            if room == 0:
                yield group
                group, room = [], num_blocks
    if group:
        yield group
