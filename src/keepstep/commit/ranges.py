"""Sets of block numbers as ascending ranges: a file has many blocks, and few runs of them."""

from collections.abc import Iterable, Iterator, Sequence


def merged(ranges: Iterable[range]) -> list[range]:
    """The same numbers in ascending ranges that neither overlap nor touch."""
    found: list[range] = []
    for numbers in sorted(ranges, key=lambda r: r.start):
        if not numbers:
            continue
        if found and numbers.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, numbers.stop))
        else:
            found.append(numbers)
    return found


def outside(ranges: Iterable[range], stop: int) -> list[range]:
    """What merged ranges leave of the numbers below ``stop``."""
    found = []
    start = 0
    for numbers in ranges:
        found.append(range(start, numbers.start))
        start = numbers.stop
    found.append(range(start, stop))
    return [numbers for numbers in found if numbers]


def common(one: Sequence[range], other: Sequence[range]) -> Iterator[range]:
    """The numbers in both of two ascending sequences of ranges, cut where either is cut."""
    at = 0
    for numbers in one:
        while at < len(other) and other[at].stop <= numbers.start:
            at += 1
        for index in range(at, len(other)):
            candidate = other[index]
            if candidate.start >= numbers.stop:
                break
            yield range(max(numbers.start, candidate.start), min(numbers.stop, candidate.stop))


def cut(numbers: range, at_most: int) -> Iterator[range]:
    """Consecutive parts of a range, none longer than ``at_most``."""
    for start in range(numbers.start, numbers.stop, at_most):
        yield range(start, min(start + at_most, numbers.stop))
