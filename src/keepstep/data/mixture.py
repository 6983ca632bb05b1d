"""Several data sets in fixed proportions, in an order that is a function of seed and position.

::

    block      places [256 b, 256 b + 256) of the mixture
    quota      how many of them are a source's: exact counts at the ends of blocks, fair to one
    place      a keyed permutation spreads the sources' quotas over the block
    source     goes through its own epochs, each in an order of its own
"""

from collections.abc import Mapping
from hashlib import blake2b, sha256
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from keepstep.data.order import permute, sample_ids
from keepstep.errors import ConfigError

_BLOCK = 256
_WHOLE = 2**30
"""Weights are multiples of one part in so many."""


class _Source(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Mixture:
    """A data set for :class:`keepstep.data.Loader` whose samples come from several, by weight.

    ::

        Mixture({"code": (code, 0.7), "prose": (prose, 0.3)})

    Up to any position each source has given its share of the samples, but for a handful. Each has
    its own epochs, each sample once in each of them; an epoch of the mixture counts as many samples
    as its sources have together.

    Args:
        sources: By name: data set and weight. Weights need not add up to 1.
    """

    def __init__(self, sources: Mapping[str, tuple[_Source, float]]) -> None:
        if not sources or any(not weight > 0 for _, weight in sources.values()):
            raise ConfigError(
                f"weights {[weight for _, weight in sources.values()]} of a mixture: at least one "
                "source, and every weight greater than 0"
            )
        self._names = list(sources)
        self._sources = [source for source, _ in sources.values()]
        self._lengths = [len(source) for source in self._sources]
        if not all(self._lengths):
            empty = self._names[self._lengths.index(0)]
            raise ConfigError(f"source {empty!r} of the mixture has no samples: leave it out")
        self._parts = _whole_parts([weight for _, weight in sources.values()])
        if nested := [n for n, s in zip(self._names, self._sources, strict=True) if _is_mixed(s)]:
            raise ConfigError(
                f"source {nested[0]!r} of the mixture is one itself, and its weights would not "
                "count: name its sources here, with their weights multiplied"
            )
        self._starts = np.cumsum([0, *self._lengths])

    @property
    def data_digest(self) -> str:
        """Changes with what is mixed and how."""
        digests = [getattr(source, "data_digest", None) for source in self._sources]
        content = repr(list(zip(self._names, self._lengths, self._parts, digests, strict=True)))
        return f"sha256:{sha256(content.encode()).hexdigest()}"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        """Samples of one source follow those of the one before."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[number][index - int(self._starts[number])]

    def sample_ids(self, *, seed: int, position: int, count: int) -> NDArray[np.int64]:
        """The order: ids at positions ``position .. position + count``; any is found at once."""
        pieces = []
        end = position + count
        while position < end:
            block, place = divmod(position, _BLOCK)
            stop = min(_BLOCK, place + end - position)
            pieces.append(self._in_block(seed, block, place, stop))
            position += stop - place
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def _in_block(self, seed: int, block: int, place: int, stop: int) -> NDArray[np.int64]:
        """Ids at some places of a block of positions."""
        counts, ends = self._counts(block * _BLOCK), self._counts((block + 1) * _BLOCK)
        quotas = [end - count for count, end in zip(counts, ends, strict=True)]
        dealt = np.repeat(np.arange(len(quotas)), quotas)
        spread = permute(np.arange(_BLOCK, dtype=np.uint64), _BLOCK, _key(seed, f"block {block}"))
        before, wanted = np.split(dealt[spread][:stop], [place])
        ids = np.empty(stop - place, dtype=np.int64)
        for number in np.unique(wanted).tolist():
            are_its = wanted == number
            ids[are_its] = self._starts[number] + sample_ids(
                seed=_key(seed, f"source {self._names[number]}"),
                num_samples=self._lengths[number],
                position=counts[number] + int(np.count_nonzero(before == number)),
                count=int(np.count_nonzero(are_its)),
            )
        return ids

    def _counts(self, position: int) -> list[int]:
        """How many of the first samples are each source's; they add up to ``position``.

        One source after the other takes its share of what the others have left, rounded down.
        """
        counts, left, parts_left = [], position, _WHOLE
        for parts in self._parts:
            counts.append(left * parts // parts_left)
            left -= counts[-1]
            parts_left -= parts
        return counts


def _is_mixed(source: object) -> bool:
    return isinstance(source, Mixture)


def _whole_parts(weights: list[float]) -> list[int]:
    """Weights as whole numbers of at least 1 that add up to ``_WHOLE``."""
    total = sum(weights)
    parts = [max(1, round(weight / total * _WHOLE)) for weight in weights]
    parts[parts.index(max(parts))] += _WHOLE - sum(parts)
    return parts


def _key(seed: int, text: str) -> int:
    digest = blake2b(f"keepstep mixture {seed} {text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
