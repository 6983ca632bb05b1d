"""Optimizer state by position, as ``Optimizer.state_dict`` has it, given names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from keepstep.errors import ConfigError

_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")
"""State of torch's optimizers that has its parameter's shape."""


def parameter_names(model_state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are parameters, as far as a state dict tells.

    Statistics of normalization layers are buffers, and of tied tensors the first one counts, as in
    ``Module.parameters()``.
    """
    names, seen = [], set()
    for name, tensor in model_state.items():
        if name.endswith(_STATISTICS):
            continue
        memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
        if memory not in seen:
            names.append(name)
        seen.add(memory)
    return names


def named_state(
    optimizer_state: Mapping[str, Any],
    model_state: Mapping[str, torch.Tensor],
    names: Sequence[str],
    *,
    where: str,
) -> dict[str, Any]:
    """An optimizer's state dict with names for positions: the structure of ``NamedOptimizer``.

    Args:
        names: Of the parameters, in the order in which the optimizer was given them.
        where: The file, for messages.

    *Raises:* ``ConfigError`` if the names do not fit the state.
    """
    try:
        groups = list(optimizer_state["param_groups"])
        positions = [position for group in groups for position in group["params"]]
        state = dict(optimizer_state["state"])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{where}: the optimizer's part is no Optimizer.state_dict(): {error!r}"
        ) from error
    if len(positions) != len(names) or len(set(positions)) != len(positions):
        raise ConfigError(
            f"{where}: the optimizer holds {len(positions)} parameters, and the model's state dict "
            f"seems to hold {len(names)}. Name them, one per line in the order of the optimizer's "
            "groups, in a file, and give it by --parameters"
        )
    by_position = dict(zip(positions, names, strict=True))
    for position, entries in state.items():
        _check_shapes(by_position[position], entries, model_state, where=where)
    return {
        "state": {by_position[position]: dict(entries) for position, entries in state.items()},
        "param_groups": [
            {
                **{key: value for key, value in group.items() if key != "param_names"},
                "params": [by_position[position] for position in group["params"]],
            }
            for group in groups
        ],
    }


def _check_shapes(
    name: str,
    entries: Mapping[str, Any],
    model_state: Mapping[str, torch.Tensor],
    *,
    where: str,
) -> None:
    if name not in model_state:
        raise ConfigError(f"{where}: the model's state dict has no {name}; it was listed by name")
    shape = model_state[name].shape
    for key in _LIKE_PARAMETER:
        value = entries.get(key)
        if isinstance(value, torch.Tensor) and value.shape != shape:
            raise ConfigError(
                f"{where}: {key} of {name} has shape {tuple(value.shape)} and the parameter "
                f"{tuple(shape)}: the optimizer was given its parameters in another order. List "
                "them in that order in a file, and give it by --parameters"
            )
