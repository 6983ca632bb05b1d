"""Optimizer state by parameter name, in the structure of torch's own distributed state dicts.

``torch.distributed.checkpoint.state_dict`` has the same structure but materializes missing state by
taking a step with zero gradients, which moves the step counters, and skips that silently where a
gradient is left over. Here a state dict is what the optimizer holds, and a template for loading is
built from what the checkpoint holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from keepstep.errors import ConfigError
from keepstep.state.equality import first_difference
from keepstep.state.module import Names

Path = tuple[str | int, ...]


class NamedOptimizer:
    """An optimizer whose parameters are known by name.

    Args:
        name: The optimizer's own, for messages.
        optimizer: A ``torch.optim.Optimizer`` that keeps its state in ``optimizer.state``, tensors
            and numbers by parameter.
        names: Name of every parameter of the tracked modules.
    """

    def __init__(
        self, name: str, optimizer: Optimizer, names: Mapping[torch.nn.Parameter, str]
    ) -> None:
        self._name = name
        self._optimizer = optimizer
        self._names = names
        self._parameters = {
            names[parameter]: parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {fqn: {name: value}}, "param_groups": [{option: value, "params": [fqn]}]}``.

        Tensors are the optimizer's own. Parameters that have no state yet have no entry.

        *Raises:* ``ConfigError`` naming state that has no place in this structure, or could not be
        put back.
        """
        self._check_state_is_flat()
        self._check_sharded_as_parameters()
        state = {
            fqn: dict(self._optimizer.state[parameter])
            for fqn, parameter in self._parameters.items()
            # A plain lookup would create an empty entry in the defaultdict.
            if self._optimizer.state.get(parameter)
        }
        return {
            "state": state,
            "param_groups": [self._options(g) for g in self._optimizer.param_groups],
        }

    def destinations(
        self, tensors: Mapping[Path, tuple[tuple[int, ...], torch.dtype]]
    ) -> dict[Path, torch.Tensor]:
        """A tensor to load into for every state tensor the checkpoint has.

        Args:
            tensors: Global shape and dtype by path ``("state", fqn, name)``; others are ignored.
        """
        return {
            path: self._destination(str(path[1]), str(path[2]), shape, dtype)
            for path, (shape, dtype) in tensors.items()
            if len(path) == 3 and path[0] == "state" and path[1] in self._parameters
        }

    def accepts(self, path: Path) -> bool:
        """Whether an entry of a checkpoint has a place in this optimizer.

        The names of options are compared elsewhere.
        """
        # State of a parameter that is not here shows as a parameter that is not here.
        return path[:1] == ("param_groups",) or (path[:1] == ("state",) and len(path) == 3)

    def load_state_dict(self, loaded: Mapping[str, Any]) -> None:
        """Take over a loaded state dict of the structure of :meth:`state_dict`.

        Assigned directly: ``Optimizer.load_state_dict`` would cast state to its parameter's dtype.
        """
        state = loaded.get("state", {})
        for fqn, parameter in self._parameters.items():
            self._optimizer.state.pop(parameter, None)
            if fqn in state:
                self._optimizer.state[parameter] = dict(state[fqn])
        groups = loaded.get("param_groups", [])
        if groups:
            self._load_options(groups)
        self._place_steps()

    def _load_options(self, groups: Sequence[Mapping[str, Any]]) -> None:
        positions = _matching(self.groups(), [frozenset(group["params"]) for group in groups])
        for group, position in zip(self._optimizer.param_groups, positions, strict=True):
            group.update(
                {
                    option: _typed(group.get(option), value)
                    for option, value in groups[position].items()
                    if option != "params"
                }
            )

    def first_lost_option(self, loaded: Mapping[str, Any]) -> str | None:
        """The first option of a group that is not what was loaded."""
        saved = {frozenset(g["params"]): g for g in loaded.get("param_groups", []) if g["params"]}
        for number, group in enumerate(self._optimizer.param_groups):
            options = saved.get(frozenset(self._group_names(group)), {})
            for option, value in options.items():
                name = f"param_groups.{number}.{option}"
                if option != "params" and first_difference(name, value, group.get(option)):
                    return name
        return None

    def groups(self) -> list[frozenset[str]]:
        """Names of the parameters of each group."""
        return [frozenset(self._group_names(group)) for group in self._optimizer.param_groups]

    def options(self) -> frozenset[str]:
        """Names of the options that any group has."""
        return frozenset().union(*self._optimizer.param_groups) - {"params"}

    def _check_state_is_flat(self) -> None:
        for parameter, state in self._optimizer.state.items():
            if not isinstance(parameter, torch.Tensor):
                raise self._unsupported(f"state under {parameter!r} instead of a parameter")
            if not isinstance(state, dict):
                raise self._unsupported(f"a {type(state).__name__} instead of a dict")
            for name, value in state.items():
                if isinstance(value, dict | list | tuple | set | frozenset):
                    raise self._unsupported(f"{name!r} as a {type(value).__name__}")

    def _check_sharded_as_parameters(self) -> None:
        """A checkpoint does not say how a tensor was sharded: its parameter does, or nothing."""
        for fqn, parameter in self._parameters.items():
            for name, value in (self._optimizer.state.get(parameter) or {}).items():
                if isinstance(value, DTensor) and value.shape != parameter.shape:
                    raise ConfigError(
                        f"optimizer {self._name!r} ({type(self._optimizer).__name__}) keeps "
                        f"{name!r} of {fqn} as a DTensor of shape {tuple(value.shape)}, not of its "
                        f"parameter's {tuple(parameter.shape)}, so that it would come back as a "
                        "plain tensor. Keep it in the parameter's shape, or as a plain tensor that "
                        "is the same on all ranks, as full_tensor() gives it"
                    )

    def _unsupported(self, what: str) -> ConfigError:
        return ConfigError(
            f"optimizer {self._name!r} ({type(self._optimizer).__name__}) keeps {what}; only "
            "tensors and numbers by parameter can be saved. Use another optimizer, or, where its "
            "parameters are not sharded, track an object that passes on its state_dict() and "
            "load_state_dict()"
        )

    def _group_names(self, group: Mapping[str, Any]) -> list[str]:
        return [self._names[parameter] for parameter in group["params"]]

    def _options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {**group, "params": self._group_names(group)}

    def _destination(
        self, fqn: str, name: str, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        parameter = self._parameters[fqn]
        present = self._optimizer.state.get(parameter, {}).get(name)
        if (
            isinstance(present, torch.Tensor)
            and tuple(present.shape) == shape
            and present.dtype == dtype
        ):
            return present
        if name == "step":
            return torch.zeros(shape, dtype=dtype, device="cpu")
        if shape == tuple(parameter.shape):
            return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        return torch.zeros(shape, dtype=dtype, device=parameter.device)

    def _place_steps(self) -> None:
        """Step counters live on the host unless the optimizer is fused or capturable."""
        for group in self._optimizer.param_groups:
            on_device = group.get("fused") or group.get("capturable")
            for parameter in group["params"]:
                state = self._optimizer.state.get(parameter, {})
                if isinstance(state.get("step"), torch.Tensor):
                    state["step"] = state["step"].to(parameter.device if on_device else "cpu")


def check_keeps_its_state(name: str, optimizer: Optimizer) -> None:
    """*Raises:* ``ConfigError`` if ``optimizer.state`` and groups are not all there is to save."""
    kind = type(optimizer)
    for attribute, inner in _inner_optimizers(optimizer):
        # Wrappers that pass on the very same state, as accelerate's, hide nothing.
        if inner.state is not optimizer.state:
            raise ConfigError(
                f"cannot track {name!r}: a {kind.__name__} keeps state in another optimizer, "
                f".{attribute} ({type(inner).__name__}), which would be lost. Track that one "
                "instead, if it has the same parameters on all ranks and the wrapper keeps nothing "
                "from one step to the next; or, where parameters are not sharded, an object that "
                "passes on the wrapper's state_dict() and load_state_dict(). To shard the state "
                "of an optimizer use torch.distributed.fsdp.fully_shard with a plain one"
            )
    if kind.state_dict is not Optimizer.state_dict:
        more = sorted(map(str, optimizer.state_dict().keys() - {"state", "param_groups"}))
        if more:
            raise ConfigError(
                f"cannot track {name!r}: the state_dict() of a {kind.__name__} holds "
                f"{', '.join(more)} besides state and param_groups, which would be lost. Track a "
                "plain optimizer, and what else there is as an object of its own with "
                "state_dict() and load_state_dict()"
            )


def _inner_optimizers(optimizer: Optimizer) -> Iterator[tuple[str, Optimizer]]:
    for attribute, value in vars(optimizer).items():
        several = value.values() if isinstance(value, dict) else value
        for inner in several if isinstance(value, dict | list | tuple) else (value,):
            if isinstance(inner, Optimizer):
                yield attribute, inner


def names_for(held: Sequence[torch.nn.Parameter], by_module: Mapping[str, Names]) -> Names:
    """The names that an optimizer uses, which modules it has nothing to do with never change.

    Those within the module that has all its parameters; if there is none, with the module's name
    in front.

    Args:
        held: The optimizer's parameters.
        by_module: Names of the parameters of every tracked module.
    """
    if owner := owner_of(held, by_module):
        return by_module[owner.removesuffix(".")]
    prefixed: Names = {}
    for module, names in by_module.items():
        for parameter, name in names.items():
            prefixed.setdefault(parameter, f"{module}.{name}")
    return prefixed


def owner_of(held: Sequence[torch.nn.Parameter], by_module: Mapping[str, Names]) -> str:
    """What the optimizer's names lack in front: ``"model."``, or nothing; see :func:`names_for`."""
    owners = (
        module
        for module, names in by_module.items()
        if all(parameter in names for parameter in held)
    )
    owner = next(owners, None)
    return "" if owner is None else f"{owner}."


def _matching(groups: Sequence[frozenset[str]], saved: Sequence[frozenset[str]]) -> list[int]:
    """Where each group was saved: at the same position, or else wherever the parameters are."""
    moved = {i: there for i, there in enumerate(saved) if there != groups[i]}
    positions = []
    for position, group in enumerate(groups):
        found = position
        if saved[position] != group:
            found = next(i for i, there in moved.items() if there == group)
            del moved[found]
        positions.append(found)
    return positions


def _typed(present: Any, loaded: Any) -> Any:
    """Options keep their kind: betas stay a tuple, a tensor lr stays on its device."""
    if isinstance(present, tuple) and isinstance(loaded, list):
        return tuple(loaded)
    if isinstance(present, torch.Tensor) and isinstance(loaded, torch.Tensor):
        return loaded.to(present.device)
    return loaded
