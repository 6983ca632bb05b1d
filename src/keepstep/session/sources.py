"""Weights from elsewhere: opened by what is found there, and named as they are tracked."""

from pathlib import Path

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import StorageReader

from keepstep.checkpoint.reader import ShardReader, Snapshot
from keepstep.checkpoint.state_files import StateFileReader, read_state_file, weights_of
from keepstep.checkpoint.stock import StockReader
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import METADATA, RUN_KEY, STEPS, CheckpointId
from keepstep.errors import ConfigError, NoCheckpointError
from keepstep.storage.opening import open_storage


def open_source(source: str, modules: list[str]) -> StorageReader:
    """A reader of weights, wherever they come from.

    Args:
        source: A run of keepstep's (its newest checkpoint is meant) or one of its checkpoints, in
            any store; a directory that stock DCP wrote; a file of ``torch.save``; a safetensors
            file, or a directory of them.
        modules: The tracked modules, by name: what lies in a source without such names belongs to
            the only one.

    *Ranks:* local.
    *Raises:* ``NoCheckpointError``, ``CorruptCheckpointError``, ``ConfigError``.
    """
    reader = open_checkpoint(source)
    if reader is not None:
        return reader
    path = Path(source).absolute()
    if (path / METADATA).exists():
        return _ModuleReader(path, modules)
    weights = weights_of(read_state_file(path), modules, where=source)
    return StateFileReader(weights)


def open_checkpoint(source: str) -> ShardReader | None:
    """A reader of one of keepstep's checkpoints, or of a run's newest; ``None`` if it is neither.

    *Raises:* ``NoCheckpointError`` for an empty run; ``CorruptCheckpointError``.
    """
    is_uri = "://" in source
    whole = source.rstrip("/") if is_uri else str(Path(source).absolute())
    run, _, name = whole.rpartition(f"/{STEPS}")
    checkpoint = CheckpointId.parse(name)
    storage = open_storage(run if checkpoint else whole) if checkpoint or is_uri else None
    if storage is None:
        if not (Path(whole) / RUN_KEY).exists():
            return None
        storage = open_storage(whole)
    catalog = Catalog(storage)
    if checkpoint is None:
        catalog.run()
        checkpoint = catalog.latest()
    if checkpoint is None:
        raise NoCheckpointError(f"{source} holds no checkpoint")
    return ShardReader(storage, Snapshot.open(storage, catalog.manifest(checkpoint)))


class _ModuleReader(StockReader):
    """A stock checkpoint; one of a bare module's state dict is taken for the only module's."""

    def __init__(self, path: Path, modules: list[str]) -> None:
        super().__init__(path)
        self._modules = modules

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        metadata = super().read_metadata(*args, **kwargs)
        paths = metadata.planner_data or {fqn: (fqn,) for fqn in metadata.state_dict_metadata}
        if any(path[0] in self._modules for path in paths.values()):
            return metadata
        if len(self._modules) != 1:
            raise ConfigError(
                f"{self.path} names none of the tracked modules, {', '.join(self._modules)}"
            )
        metadata.planner_data = {
            fqn: (self._modules[0], ".".join(map(str, path))) for fqn, path in paths.items()
        }
        return metadata
