"""Which entries of a checkpoint go where: compared, renamed and chosen before anything is read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import StorageReader

from keepstep.checkpoint.mismatch import Difference, find_differences, refuse
from keepstep.checkpoint.planned import PlannedLoad
from keepstep.checkpoint.selection import Selection
from keepstep.errors import ConfigError

Path = tuple[str | int, ...]
TensorSpec = tuple[tuple[int, ...], torch.dtype]
Contents = dict[Path, TensorSpec | None]

_ALL = Selection()


class Comparable(Protocol):
    """What comparing needs of the tracked objects; ``state.AppState`` is one."""

    def expected(self) -> dict[Path, TensorSpec | None]: ...

    def optimizer_groups(self) -> dict[str, list[frozenset[str]]]: ...

    def optimizer_options(self) -> dict[str, frozenset[str]]: ...

    def optimizer_owners(self) -> dict[str, str]: ...

    def tracks(self, name: str) -> bool: ...

    def tracks_module(self, name: str) -> bool: ...

    def accepted(self, present: Mapping[Path, TensorSpec | None]) -> set[Path]: ...


@dataclass(frozen=True)
class Fit:
    """What is to be loaded, named as it is here."""

    metadata: Metadata
    """Of the entries that are wanted, and no others."""
    saved_names: Mapping[str, str] | None = None
    """What each wanted tensor is called in the checkpoint; ``None``: the same, and all are."""
    casts: Mapping[Path, torch.dtype] = field(default_factory=dict)
    """Dtype here of tensors that are to be converted, with their parameter if it is one."""
    parameters: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Name here of renamed parameters, by optimizer and name in the checkpoint."""
    left: tuple[Difference, ...] = ()
    """What stays as it is because it does not fit."""

    @cached_property
    def contents(self) -> Contents:
        """Shape and dtype of tensors, ``None`` for values, by path."""
        return _contents(self.metadata)


def fit_state(
    reader: StorageReader,
    state: Comparable,
    selection: Selection = _ALL,
    *,
    where: str,
    is_partial: bool = False,
) -> Fit:
    """Compare a checkpoint with the tracked objects. Nothing is changed.

    Args:
        where: The checkpoint, for the message.
        is_partial: Leave out what was saved of objects that are not tracked.

    *Ranks:* local. *Raises:* ``StateMismatchError`` with a table of every difference that the
    selection does not allow; ``ConfigError`` if ``only`` names what is on neither side.
    """
    metadata = reader.read_metadata()
    _check_only(selection, metadata, state, where=where)
    fit = Fit(metadata) if selection.takes_all else _select(metadata, state, selection)
    present = {
        path: spec
        for path, spec in fit.contents.items()
        if not is_partial or state.tracks(str(path[0]))
    }
    groups = state.optimizer_groups()
    with_options = {path[0] for path in fit.contents if path[1:2] == ("param_groups",)}
    optimizers = [
        name for name in groups if name in with_options or selection.takes(f"{name}.param_groups")
    ]
    differences = find_differences(
        expected={
            path: spec for path, spec in state.expected().items() if selection.takes(_dotted(path))
        },
        present=present,
        accepted=state.accepted(present),
        expected_groups={name: groups[name] for name in optimizers},
        saved_groups=_saved_groups(reader, fit, optimizers),
        expected_options={n: o for n, o in state.optimizer_options().items() if n in optimizers},
    )
    casts = [one for one in differences if one.kind == "dtype" and selection.cast]
    left = [one for one in differences if selection.tolerates(one.kind)]
    if refused := [one for one in differences if one not in casts and one not in left]:
        refuse(refused, where=where)
    if left:
        fit = _without(fit, left, state.optimizer_owners())
    if not differences:
        return fit
    return replace(fit, casts=_casts(fit, casts, state), left=tuple(left))


def _check_only(selection: Selection, metadata: Metadata, state: Comparable, *, where: str) -> None:
    """A slip of the pen must not pass for the wish that nothing be loaded."""
    there = (selection.renamed(_dotted(path)) for _, path in _paths(metadata))
    names = {*there, *map(_dotted, state.expected())} if selection.only else ()
    for pattern in selection.idle(names):
        name = pattern.partition(".")[0]
        if not state.tracks(name) or (state.tracks_module(name) and pattern != name):
            raise ConfigError(
                f"only= names {pattern!r}, which is neither in {where} nor in the tracked objects"
            )


def _select(metadata: Metadata, state: Comparable, selection: Selection) -> Fit:
    """What is wanted, under the names it has here."""
    owners = state.optimizer_owners()
    paths = {fqn: _path_here(path, state, owners, selection) for fqn, path in _paths(metadata)}
    wanted = {fqn: path for fqn, path in paths.items() if path is not None}
    parameters = {
        (str(path[0]), there): str(path[2])
        for fqn, path in wanted.items()
        if _is_optimizer_state(path, owners)
        and (there := str(_path_of(metadata, fqn)[2])) != path[2]
    }
    _check_unique(wanted)
    _check_groups(metadata, wanted, selection, owners)
    return Fit(_narrowed(metadata, wanted), _names(wanted), parameters=parameters)


def _path_here(
    path: Path, state: Comparable, owners: Mapping[str, str], selection: Selection
) -> Path | None:
    """Where an entry goes, or ``None`` if it is not wanted."""
    top = selection.renamed(str(path[0])) if len(path) > 1 else ""
    if _is_optimizer_state((top, *path[1:]), owners):
        owner = owners[top]
        parameter = selection.renamed(owner + str(path[2]))
        here: Path = (top, "state", parameter.removeprefix(owner), *path[3:])
        is_wanted = selection.takes(_dotted(here)) and not selection.skips(parameter)
    elif top in owners:
        here = (top, *path[1:])
        is_wanted = selection.takes(_dotted(here))
    else:
        dotted = selection.renamed(_dotted(path))
        head, _, rest = dotted.partition(".")
        here = (head, rest) if rest and state.tracks_module(head) else path
        if here is path and dotted != _dotted(path):
            here = (head, *path[1:])
        is_wanted = selection.takes(dotted)
    return here if is_wanted else None


def _casts(
    fit: Fit, differences: Iterable[Difference], state: Comparable
) -> dict[Path, torch.dtype]:
    """Module tensors, and the state that optimizers keep of them in a floating dtype."""
    expected, owners = state.expected(), state.optimizer_owners()
    dtypes = {
        _dotted(one.path): spec[1]
        for one in differences
        if (spec := expected[one.path]) is not None
    }
    casts = {}
    for path, spec in fit.contents.items():
        name = _dotted(path)
        if _is_optimizer_state(path, owners) and path[3] != "step":
            name = owners[str(path[0])] + str(path[2])
        if name in dtypes and spec is not None and spec[1].is_floating_point:
            casts[path] = dtypes[name]
    return casts


def _without(fit: Fit, left: Iterable[Difference], owners: Mapping[str, str]) -> Fit:
    """The same but for what does not fit, the state of its optimizers included."""
    entries = {one.path for one in left}
    groups = {one.path[0] for one in left if one.kind in ("missing", "unexpected", "groups")}
    parameters = {_dotted(path) for path in entries}

    def stays(path: Path) -> bool:
        if path in entries or (path[0] in groups and path[1:2] == ("param_groups",)):
            return False
        name = str(path[0])
        is_state = _is_optimizer_state(path, owners)
        return not (is_state and owners[name] + str(path[2]) in parameters)

    wanted = {fqn: path for fqn, path in _paths(fit.metadata) if stays(path)}
    saved = fit.saved_names or _names(wanted)
    return replace(
        fit,
        metadata=_narrowed(fit.metadata, wanted),
        saved_names={fqn: saved[fqn] for fqn in wanted},
    )


def _narrowed(metadata: Metadata, wanted: Mapping[str, Path]) -> Metadata:
    """Of the entries ``wanted``, by name there, at the paths they have here."""
    here = {fqn: _dotted(path) for fqn, path in wanted.items()}
    return replace(
        metadata,
        state_dict_metadata={
            here[fqn]: entry for fqn, entry in metadata.state_dict_metadata.items() if fqn in here
        },
        planner_data={here[fqn]: path for fqn, path in wanted.items()},
        storage_data={
            replace(index, fqn=here[index.fqn]): place
            for index, place in (metadata.storage_data or {}).items()
            if index.fqn in here
        },
    )


def _saved_groups(
    reader: StorageReader, fit: Fit, optimizers: Iterable[str]
) -> dict[str, list[frozenset[str]]]:
    """Names here of the parameters in each saved group of each optimizer."""
    names = set(optimizers)
    wanted = [
        path
        for path, spec in fit.contents.items()
        if spec is None and path[0] in names and path[1] == "param_groups" and path[-1] == "params"
    ]
    flat: dict[str, Any] = {_dotted(path): None for path in wanted}
    if flat:
        PlannedLoad.of(flat, reader, fit.metadata).read()
    groups: dict[str, list[frozenset[str]]] = {name: [] for name in names}
    for path in sorted(wanted, key=lambda path: int(path[2])):
        name = str(path[0])
        params = flat[_dotted(path)]
        groups[name].append(frozenset(fit.parameters.get((name, fqn), fqn) for fqn in params))
    return groups


def _contents(metadata: Metadata) -> Contents:
    """Tensors and values of a checkpoint, by path."""
    return {
        path: (tuple(entry.size), entry.properties.dtype)
        if isinstance(entry, TensorStorageMetadata)
        else None
        for (_, path), entry in zip(
            _paths(metadata), metadata.state_dict_metadata.values(), strict=True
        )
    }


def _paths(metadata: Metadata) -> Iterable[tuple[str, Path]]:
    for fqn in metadata.state_dict_metadata:
        yield fqn, _path_of(metadata, fqn)


def _path_of(metadata: Metadata, fqn: str) -> Path:
    return tuple((metadata.planner_data or {}).get(fqn, (fqn,)))


def _is_optimizer_state(path: Path, owners: Mapping[str, str]) -> bool:
    return len(path) == 4 and path[0] in owners and path[1] == "state"


def _names(wanted: Mapping[str, Path]) -> dict[str, str]:
    return {_dotted(path): fqn for fqn, path in wanted.items()}


def _check_unique(wanted: Mapping[str, Path]) -> None:
    first: dict[Path, str] = {}
    for fqn, path in wanted.items():
        if (other := first.setdefault(path, fqn)) != fqn:
            raise ConfigError(
                f"rename= gives {other} and {fqn} of the checkpoint one name, {_dotted(path)}"
            )


def _check_groups(
    metadata: Metadata,
    wanted: Mapping[str, Path],
    selection: Selection,
    owners: Mapping[str, str],
) -> None:
    """Options come back to where the parameters of their group are."""
    with_options = {p[0] for p in wanted.values() if p[0] in owners and p[1:2] == ("param_groups",)}
    for fqn, path in _paths(metadata):
        is_members = path[1:2] == ("param_groups",) and path[-1] == "params"
        name = selection.renamed(str(path[0]))
        if is_members and fqn not in wanted and name in with_options:
            raise ConfigError(
                f"only= or skip= leave out {_dotted((name, *path[1:]))}, and not all options of "
                f"the groups, which cannot be put back without it: take {name}.param_groups as a "
                "whole, and leave out options by skip="
            )


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
