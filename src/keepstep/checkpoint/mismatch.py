"""Whether a checkpoint fits the tracked objects, explained before anything is touched."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch

from keepstep.checkpoint.frames import dtype_name
from keepstep.errors import StateMismatchError

Path = tuple[str | int, ...]
TensorSpec = tuple[tuple[int, ...], torch.dtype]
Row = tuple[str, str, str, str]
Groups = Mapping[str, list[frozenset[str]]]

_ROWS_SHOWN = 40
_SCHEDULERS_OPTIONS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
"""What torch's schedulers add to a group; loading may come before a scheduler, or without one."""


def check_fits(
    *,
    expected: Mapping[Path, TensorSpec | None],
    present: Mapping[Path, TensorSpec | None],
    accepted: AbstractSet[Path],
    expected_groups: Groups,
    saved_groups: Groups,
    expected_options: Mapping[str, frozenset[str]],
    where: str,
) -> None:
    """Compare, and explain every difference in one table.

    Args:
        expected: What the tracked objects need, by path; ``None`` stands for a value.
        present: What the checkpoint holds.
        accepted: Entries beyond ``expected`` that a tracked object takes.
        expected_groups: Parameters by optimizer and group, as tracked.
        saved_groups: The same, as saved.
        expected_options: Names of the options that each optimizer's groups have, as tracked.
        where: The checkpoint, for the message.

    *Raises:* ``StateMismatchError``.
    """
    rows = [
        *_entry_rows(expected, present, accepted),
        *_group_rows(expected_groups, saved_groups),
        *_option_rows(expected_options, present),
    ]
    if rows:
        raise StateMismatchError(
            f"{where} does not fit the tracked objects; nothing was changed.\n{_table(rows)}\n"
            "Build and track the objects as they were when it was saved, or start a new run "
            "under another uri."
        )


def _entry_rows(
    expected: Mapping[Path, TensorSpec | None],
    present: Mapping[Path, TensorSpec | None],
    accepted: AbstractSet[Path],
) -> list[Row]:
    rows = []
    for path in sorted(expected.keys() | present.keys(), key=_name):
        if path not in present:
            if not any(other[: len(path)] == path for other in present):
                rows.append((_name(path), "missing", "-", _describe(expected[path])))
        elif path not in expected:
            if path not in accepted:
                rows.append((_name(path), "unexpected", _describe(present[path]), "-"))
        elif expected[path] != present[path]:
            there, here = present[path], expected[path]
            rows.append((_name(path), _difference(there, here), _describe(there), _describe(here)))
    return rows


def _difference(there: TensorSpec | None, here: TensorSpec | None) -> str:
    if there is None or here is None:
        return "kind"
    return "dtype" if there[0] == here[0] else "shape"


def _group_rows(expected: Groups, saved: Groups) -> list[Row]:
    rows: list[Row] = []
    for name, groups in expected.items():
        there, here = frozenset().union(*saved[name]), frozenset().union(*groups)
        rows += [(f"{name}: {fqn}", "missing", "-", "parameter") for fqn in sorted(here - there)]
        rows += [(f"{name}: {fqn}", "unexpected", "parameter", "-") for fqn in sorted(there - here)]
        if there == here and Counter(saved[name]) != Counter(groups):
            rows.append((f"{name}.param_groups", "groups", _sizes(saved[name]), _sizes(groups)))
    return rows


def _option_rows(expected: Mapping[str, frozenset[str]], present: Iterable[Path]) -> list[Row]:
    """Groups with options that the optimizer does not know: most likely it is another one.

    Options that are only here are taken as they are, for newer versions of torch add some.
    """
    saved: dict[Path, set[str]] = {}
    for path in present:
        if path[0] in expected and path[1] == "param_groups":
            saved.setdefault(path[:3], set()).add(str(path[3]))
    rows: list[Row] = []
    for group, options in sorted(saved.items(), key=lambda item: _name(item[0])):
        known = expected[str(group[0])] | {"params"}
        if unknown := options - known - _SCHEDULERS_OPTIONS:
            rows.append((_name(group), "options", _listed(unknown), _listed(known - options)))
    return rows


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


def _table(rows: Sequence[Row]) -> str:
    shown = [("name", "difference", "checkpoint", "tracked objects"), *rows[:_ROWS_SHOWN]]
    widths = [max(len(row[column]) for row in shown) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in shown
    ]
    if len(rows) > _ROWS_SHOWN:
        lines.append(f"... and {len(rows) - _ROWS_SHOWN} more")
    return "\n".join(f"  {line.rstrip()}" for line in lines)
