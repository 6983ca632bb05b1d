"""What of a checkpoint is wanted, and under which names, when it is not wanted as it is."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Literal

Strictness = Literal["shape"] | bool

_TOLERATED = {
    True: frozenset[str](),
    "shape": frozenset({"shape"}),
    False: frozenset({"shape", "missing", "unexpected", "groups", "options"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How a checkpoint may differ from the tracked objects, and what to do about it.

    Names are dotted, as mismatch tables show them: ``model.head.weight``. A pattern means an entry
    of that name and all below it, and may hold the wildcards of ``fnmatch``. Optimizer state goes
    with its parameter.
    """

    strict: Strictness = True
    """Whether everything must fit; ``"shape"``: tensors of another shape stay as they are, which is
    what a new head wants; ``False``: so does what is only on one side."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """From a name in the checkpoint to the one here; for everything below it as well."""
    skip: tuple[str, ...] = ()
    """Patterns of what stays as it is."""
    only: tuple[str, ...] = ()
    """Patterns of all that is taken; everything, if there are none."""
    cast: bool = False
    """Whether tensors of another dtype are converted."""

    @property
    def takes_all(self) -> bool:
        """Whether a checkpoint is wanted as it is."""
        return self == Selection()

    @property
    def digest(self) -> str | None:
        """Tells selections apart; ``None`` if everything is wanted as it is."""
        if self.takes_all:
            return None
        parts = [self.strict, sorted(self.rename.items()), self.skip, self.only, self.cast]
        return f"sha256:{sha256(json.dumps(parts).encode()).hexdigest()}"

    def renamed(self, name: str) -> str:
        """The name here of what a checkpoint calls ``name``; the longest rule wins."""
        rules = [there for there in self.rename if _is_below(name, there)]
        if not rules:
            return name
        there = max(rules, key=len)
        rest = name if not there else name[len(there) :].removeprefix(".")
        return ".".join(part for part in (self.rename[there], rest) if part)

    def skips(self, name: str) -> bool:
        """Whether an entry, by its name here, stays as it is."""
        return any(_matches(name, pattern) for pattern in self.skip)

    def takes(self, name: str) -> bool:
        """Whether an entry, by its name here, is to come from the checkpoint."""
        is_meant = not self.only or any(_matches(name, pattern) for pattern in self.only)
        return is_meant and not self.skips(name)

    def idle(self, names: Iterable[str]) -> list[str]:
        """Patterns of ``only`` that mean none of these entries."""
        known = list(names)
        return [one for one in self.only if not any(_matches(name, one) for name in known)]

    def tolerates(self, difference: str) -> bool:
        """Whether an entry that differs in this way stays as it is, instead of an error."""
        return difference in _TOLERATED[self.strict]


def _is_below(name: str, above: str) -> bool:
    return not above or name == above or name.startswith(f"{above}.")


def _matches(name: str, pattern: str) -> bool:
    return (
        _is_below(name, pattern) or fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    )
