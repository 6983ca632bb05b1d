"""Loading one checkpoint, wherever it came from, without a run."""

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.storage import StorageReader

from keepstep.checkpoint.engine import check_state_fits, load_state
from keepstep.checkpoint.reader import ShardReader, Snapshot
from keepstep.checkpoint.stock import StockReader
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import STEPS, CheckpointId
from keepstep.errors import ConfigError
from keepstep.state.app_state import AppState
from keepstep.storage.opening import open_storage


def load(path: str | Path, **objects: Any) -> None:
    """Load a checkpoint directory into objects: one of keepstep's, or one that stock DCP wrote.

    ::

        keepstep.load("runs/gpt/steps/000000000400-g000001-3f9cab12cd34", model=model, optim=optim)

    A checkpoint of keepstep's is verified block by block; stock DCP's has nothing to verify. Random
    generators are left alone.

    *Ranks:* local; in a process group call it on all ranks, and sharded objects read their shards.

    Args:
        path: The checkpoint's own directory; one of keepstep's may be in any store, as
            ``s3://bucket/run/steps/NAME``.
        objects: As for :meth:`Session.track`, under the names they were saved by. What was saved
            under other names is left alone.

    *Raises:* ``StateMismatchError`` before anything is changed; ``NoCheckpointError``;
    ``CorruptCheckpointError``: the objects are then partly overwritten.
    """
    state = AppState(rank=0, seed=0)
    state.track(objects)
    reader = _reader(str(path))
    check_state_fits(reader, state, where=str(path), is_partial=True)
    load_state(reader, state, with_rng=False)


def _reader(path: str) -> StorageReader:
    is_uri = "://" in path
    whole = path.rstrip("/") if is_uri else str(Path(path).absolute())
    run, _, name = whole.rpartition(f"/{STEPS}")
    checkpoint = CheckpointId.parse(name)
    if checkpoint is None:
        if is_uri:
            raise ConfigError(f"{path} is no checkpoint of keepstep's: write URI/{STEPS}NAME")
        return StockReader(Path(whole))
    storage = open_storage(run)
    return ShardReader(storage, Snapshot.open(storage, Catalog(storage).manifest(checkpoint)))
