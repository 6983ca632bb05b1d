"""Checkpoints in one file of ``torch.save``, as tutorials write them, made the start of a run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from keepstep._version import __version__
from keepstep.checkpoint.save_engine import SaveMode
from keepstep.checkpoint.state_files import read_state_file, weights_of
from keepstep.checkpoint.store import C10dStore
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import CheckpointId
from keepstep.commit.lineage import claim_generation
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.errors import ConfigError
from keepstep.session.saving import Saver
from keepstep.state.positions import named_state, parameter_names
from keepstep.state.values import as_one_value
from keepstep.storage.base import Storage
from keepstep.world import World

_OPTIMIZER = ("optimizer_state_dict", "optimizer", "optim", "optimizer_state", "opt")
_SCHEDULER = ("scheduler_state_dict", "lr_scheduler_state_dict", "scheduler", "lr_scheduler")
_SCALER = ("scaler_state_dict", "grad_scaler_state_dict", "scaler")
_STEP = ("step", "global_step", "iteration", "iter", "num_steps")
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Names:
    """Under which names objects will be tracked."""

    model: str = "model"
    optimizer: str = "optim"
    scheduler: str = "sched"
    scaler: str = "scaler"


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file holds, as a session would save it."""

    state: Mapping[str, Any]
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def save_dict(self) -> dict[str, Any]:
        """*Ranks:* the only one."""
        return dict(self.state)

    def buffer_names(self) -> set[str]:
        """None: there are no other ranks whose buffers could differ."""
        return set()

    def guarded(self) -> Callable[[str], bool]:
        """Nothing changes while this is saved."""
        return lambda _: True


def read_file(
    path: Path, *, names: Names, step: int | None, parameters: Sequence[str] | None
) -> Imported:
    """Model, optimizer, scheduler and scaler of a file, by the usual keys.

    Args:
        step: Optimizer steps completed; by default what the file says.
        parameters: Names of the parameters in the order of the optimizer's groups; by default that
            of the model's state dict.

    *Raises:* ``ConfigError``, ``NoCheckpointError``, ``CorruptCheckpointError``.
    """
    where = str(path)
    content = read_state_file(path)
    weights = {
        key: tensor for (_, key), tensor in weights_of(content, [names.model], where=where).items()
    }
    state: dict[str, Any] = {names.model: weights}
    optimizer = _first(content, _OPTIMIZER, Mapping)
    if optimizer is not None:
        listed = list(parameters) if parameters else _names_in(optimizer)
        listed = listed or parameter_names(weights)
        state[names.optimizer] = named_state(optimizer, weights, listed, where=where)
    for name, keys in ((names.scheduler, _SCHEDULER), (names.scaler, _SCALER)):
        if (other := _first(content, keys, Mapping)) is not None:
            state[name] = as_one_value(name, other)
    found = step if step is not None else _step_of(content, optimizer)
    if found is None:
        raise ConfigError(f"{where} does not say how many steps it has seen: give --step")
    return Imported(state, found, _metrics_of(content))


def import_state(
    storage: Storage, imported: Imported, *, samples: int, tokens: int
) -> CheckpointId:
    """Make it the first checkpoint of a new run.

    *Durability:* the step is committed once this returns.
    *Raises:* ``ConfigError`` if the run has checkpoints already; ``CommitError``; ``StorageError``.
    """
    catalog = Catalog(storage)
    if catalog.entries():
        raise ConfigError(
            f"{storage.uri} holds checkpoints already; import into a new run, under another uri"
        )
    run = catalog.open_run()
    claim = claim_generation(
        storage,
        newest_seen=max(catalog.generations(), default=0),
        world_size=1,
        resumed_from=None,
    )

    def describe(
        attempt: CheckpointId, objects: tuple[ObjectRecord, ...], state_digest: str
    ) -> Manifest:
        return Manifest(
            run=run,
            step=attempt.step,
            generation=attempt.generation,
            attempt=attempt.attempt,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            keepstep_version=__version__,
            torch_version=torch.__version__,
            world_size=1,
            objects=objects,
            progress={"samples": samples, "tokens": tokens},
            metrics=imported.metrics,
            tags=("imported",),
            state_digest=state_digest,
        )

    saver = Saver(
        storage,
        C10dStore(timeout_seconds=_TIMEOUT_SECONDS),
        mode=SaveMode.SYNC,
        world=World(),
        run=run,
        generation=claim.number,
        nonce=claim.nonce,
        timeout_seconds=_TIMEOUT_SECONDS,
        deadline_seconds=float("inf"),
        before_commit=lambda: None,
    )
    try:
        return saver.begin(imported, imported.step, describe).committed()
    finally:
        saver.close()


def _first(content: Mapping[str, Any], keys: Sequence[str], kind: type) -> Any:
    return next((content[key] for key in keys if isinstance(content.get(key), kind)), None)


def _names_in(optimizer: Mapping[str, Any]) -> list[str]:
    """What ``named_parameters()`` gave the optimizer, if it was built with them."""
    groups = optimizer.get("param_groups", [])
    return [str(name) for group in groups for name in group.get("param_names", [])]


def _step_of(content: Mapping[str, Any], optimizer: Mapping[str, Any] | None) -> int | None:
    """What the file says, or the optimizer's own counters."""
    said = _first(content, _STEP, int)
    if said is not None:
        return int(said)
    counters = [
        int(entries["step"])
        for entries in (optimizer or {}).get("state", {}).values()
        if isinstance(entries, Mapping) and "step" in entries
    ]
    return max(counters, default=None)


def _metrics_of(content: Mapping[str, Any]) -> dict[str, float]:
    """Finite ones: others have no place in a manifest."""
    metrics = {}
    for key, value in content.items():
        is_number = isinstance(value, torch.Tensor) and value.numel() == 1
        if (isinstance(value, int | float) or is_number) and key not in _STEP:
            metrics[str(key)] = float(value)
    return {name: number for name, number in metrics.items() if math.isfinite(number)}
