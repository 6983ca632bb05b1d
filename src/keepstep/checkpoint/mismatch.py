"""Whether a checkpoint fits the tracked objects, explained before anything is touched."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch

from keepstep.checkpoint.frames import dtype_name
from keepstep.errors import StateMismatchError

Path = tuple[str | int, ...]
TensorSpec = tuple[tuple[int, ...], torch.dtype]
Groups = Mapping[str, list[frozenset[str]]]

_ROWS_SHOWN = 40
_SCHEDULERS_OPTIONS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
"""What torch's schedulers add to a group; loading may come before a scheduler, or without one."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which a checkpoint does not fit."""

    path: Path
    """Of the entry; of the optimizer, where groups of parameters differ."""
    name: str
    kind: Literal["missing", "unexpected", "shape", "dtype", "kind", "groups", "options"]
    there: str
    """In the checkpoint."""
    here: str


def find_differences(
    *,
    expected: Mapping[Path, TensorSpec | None],
    present: Mapping[Path, TensorSpec | None],
    accepted: AbstractSet[Path],
    expected_groups: Groups,
    saved_groups: Groups,
    expected_options: Mapping[str, frozenset[str]],
) -> list[Difference]:
    """Compare what is here with what was saved.

    Args:
        expected: What the tracked objects need, by path; ``None`` stands for a value.
        present: What the checkpoint holds.
        accepted: Entries beyond ``expected`` that a tracked object takes.
        expected_groups: Parameters by optimizer and group, as tracked.
        saved_groups: The same, as saved.
        expected_options: Names of the options that each optimizer's groups have, as tracked.
    """
    return [
        *_of_entries(expected, present, accepted),
        *_of_groups(expected_groups, saved_groups),
        *_of_options(expected_options, present),
    ]


def refuse(differences: Sequence[Difference], *, where: str) -> NoReturn:
    """Explain every difference in one table.

    *Raises:* ``StateMismatchError``.
    """
    raise StateMismatchError(
        f"{where} does not fit the tracked objects; nothing was changed.\n{table(differences)}\n"
        "Build and track the objects as they were when it was saved, say what may differ "
        f"({_remedies(differences)}), or start a new run under another uri."
    )


def table(differences: Sequence[Difference]) -> str:
    """A line for each, aligned."""
    rows = [(one.name, one.kind, one.there, one.here) for one in differences[:_ROWS_SHOWN]]
    shown = [("name", "difference", "checkpoint", "tracked objects"), *rows]
    widths = [max(len(row[column]) for row in shown) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in shown
    ]
    if len(differences) > _ROWS_SHOWN:
        lines.append(f"... and {len(differences) - _ROWS_SHOWN} more")
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def _remedies(differences: Iterable[Difference]) -> str:
    kinds = {one.kind for one in differences}
    remedies = []
    if {"missing", "unexpected"} <= kinds:
        remedies.append("rename=")
    if kinds & {"missing", "unexpected", "groups", "options"}:
        remedies.append("strict=False")
    if "shape" in kinds:
        remedies.append('strict="shape"')
    if "dtype" in kinds:
        remedies.append("cast=True")
    return ", ".join([*remedies, "skip="])


def _of_entries(
    expected: Mapping[Path, TensorSpec | None],
    present: Mapping[Path, TensorSpec | None],
    accepted: AbstractSet[Path],
) -> Iterator[Difference]:
    for path in sorted(expected.keys() | present.keys(), key=_name):
        name = _name(path)
        if path not in present:
            if not any(other[: len(path)] == path for other in present):
                yield Difference(path, name, "missing", "-", _describe(expected[path]))
        elif path not in expected:
            if path not in accepted:
                yield Difference(path, name, "unexpected", _describe(present[path]), "-")
        elif expected[path] != present[path]:
            there, here = present[path], expected[path]
            kind = _difference(there, here)
            yield Difference(path, name, kind, _describe(there), _describe(here))


def _difference(
    there: TensorSpec | None, here: TensorSpec | None
) -> Literal["kind", "shape", "dtype"]:
    if there is None or here is None:
        return "kind"
    return "dtype" if there[0] == here[0] else "shape"


def _of_groups(expected: Groups, saved: Groups) -> Iterator[Difference]:
    for name, groups in expected.items():
        there, here = frozenset().union(*saved[name]), frozenset().union(*groups)
        for fqn in sorted(here - there):
            yield Difference((name,), f"{name}: {fqn}", "missing", "-", "parameter")
        for fqn in sorted(there - here):
            yield Difference((name,), f"{name}: {fqn}", "unexpected", "parameter", "-")
        if there == here and Counter(saved[name]) != Counter(groups):
            sizes = _sizes(saved[name]), _sizes(groups)
            yield Difference((name,), f"{name}.param_groups", "groups", *sizes)


def _of_options(
    expected: Mapping[str, frozenset[str]], present: Iterable[Path]
) -> Iterator[Difference]:
    """Groups with options that the optimizer does not know: most likely it is another one.

    Options that are only here are taken as they are, for newer versions of torch add some.
    """
    saved: dict[Path, set[str]] = {}
    for path in present:
        if path[0] in expected and path[1] == "param_groups":
            saved.setdefault(path[:3], set()).add(str(path[3]))
    for group, options in sorted(saved.items(), key=lambda item: _name(item[0])):
        known = expected[str(group[0])] | {"params"}
        if unknown := options - known - _SCHEDULERS_OPTIONS:
            lists = _listed(unknown), _listed(known - options)
            yield Difference(group[:1], _name(group), "options", *lists)


def _name(path: Path) -> str:
    return ".".join(map(str, path))


def _describe(spec: TensorSpec | None) -> str:
    if spec is None:
        return "value"
    shape, dtype = spec
    return f"{dtype_name(dtype)}[{', '.join(map(str, shape))}]"


def _sizes(groups: list[frozenset[str]]) -> str:
    return f"groups of {', '.join(str(len(group)) for group in groups)}"


def _listed(names: AbstractSet[str]) -> str:
    return ", ".join(sorted(names)) or "-"
