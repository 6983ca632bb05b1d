"""State dicts in files of other formats, as DCP's load takes them: torch.save's, safetensors'."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from keepstep.errors import ConfigError, CorruptCheckpointError, NoCheckpointError

_SAFETENSORS = ".safetensors"
_WEIGHTS = ("model_state_dict", "state_dict", "model", "module", "net", "weights")
_WRAPPERS = ("module.", "_orig_mod.")
"""What DDP and torch.compile put before every name."""


class StateFileReader(StorageReader):
    """Reads parts of tensors that are on the host already, usually in a mapped file.

    Args:
        tensors: By tracked module and name within it.
    """

    def __init__(self, tensors: Mapping[tuple[str, str], torch.Tensor]) -> None:
        self._tensors = {".".join(path): tensor for path, tensor in tensors.items()}
        self._paths = {".".join(path): path for path in tensors}

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        entries: dict[str, Any] = {fqn: _whole(tensor) for fqn, tensor in self._tensors.items()}
        return Metadata(entries, planner_data=self._paths, storage_data={})

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        # Renamed entries still carry the tensor that they were made of.
        self._wanted = metadata.state_dict_metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            entry = self._wanted[item.storage_index.fqn]
            assert isinstance(entry, _InFile)
            source = entry.tensor
            for dimension, offset in enumerate(item.storage_offsets):
                source = source.narrow(dimension, offset, item.lengths[dimension])
            target = planner.resolve_tensor(item).detach()
            target.copy_(source)
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """DCP asks this of readers it chooses itself; this one is always given."""
        return False


class _InFile(TensorStorageMetadata):
    tensor: torch.Tensor


def read_state_file(path: Path) -> Mapping[str, Any]:
    """What is in a file, tensors mapped and not yet read. Nothing in it is executed.

    *Raises:* ``NoCheckpointError``, ``CorruptCheckpointError``, ``ConfigError``.
    """
    if not path.exists():
        raise NoCheckpointError(f"{path} does not exist")
    if path.is_dir() or path.suffix == _SAFETENSORS:
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CorruptCheckpointError(
            f"{path} is no file of torch.save that loads without executing code: {reason}"
        ) from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds a {type(content).__name__}; a state dict is needed")
    return content


def weights_of(
    content: Mapping[str, Any], modules: Sequence[str], *, where: str
) -> dict[tuple[str, str], torch.Tensor]:
    """The tensors of each module: under its own name, or else the only ones there are.

    *Raises:* ``ConfigError`` naming what the file holds instead.
    """
    named = [name for name in modules if isinstance(content.get(name), Mapping)]
    if named:
        return {(name, key): tensor for name in named for key, tensor in _unwrapped(content[name])}
    inner = next((content[key] for key in _WEIGHTS if isinstance(content.get(key), Mapping)), None)
    tensors = _unwrapped(content if inner is None else inner)
    if len(modules) != 1 or not tensors:
        keys = ", ".join(list(map(str, content))[:8]) or "nothing"
        raise ConfigError(
            f"{where} holds no weights for {', '.join(modules) or 'any module'}: it has {keys}. "
            "Save each module's state dict under the name by which the module is tracked"
        )
    return {(modules[0], key): tensor for key, tensor in tensors}


def _unwrapped(state: Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
    tensors = [(str(k), v) for k, v in state.items() if isinstance(v, torch.Tensor)]
    for wrapper in (*_WRAPPERS, *_WRAPPERS):
        if tensors and all(key.startswith(wrapper) for key, _ in tensors):
            tensors = [(key.removeprefix(wrapper), tensor) for key, tensor in tensors]
    return tensors


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading safetensors needs pip install 'keepstep[safetensors]'"
        ) from error
    files = sorted(path.glob(f"*{_SAFETENSORS}")) if path.is_dir() else [path]
    if not files:
        raise NoCheckpointError(f"{path} holds no checkpoint: neither .metadata nor safetensors")
    content: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            content |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpointError(f"{file} cannot be read: {error}") from error
    return content


def _whole(tensor: torch.Tensor) -> _InFile:
    chunk = ChunkStorageMetadata(torch.Size([0] * tensor.dim()), tensor.shape)
    entry = _InFile(TensorProperties(dtype=tensor.dtype), tensor.shape, [chunk])
    entry.tensor = tensor
    return entry
