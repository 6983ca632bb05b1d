"""Loading one checkpoint, wherever it came from, without a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from keepstep.checkpoint.engine import load_state
from keepstep.checkpoint.fit import fit_state
from keepstep.checkpoint.mismatch import Difference
from keepstep.checkpoint.reader import ShardReader, Snapshot
from keepstep.checkpoint.selection import Selection
from keepstep.checkpoint.stock import StockReader
from keepstep.commit.layout import STEPS
from keepstep.commit.manifest import Manifest
from keepstep.errors import ConfigError
from keepstep.session.sources import open_checkpoint, open_source
from keepstep.state.app_state import AppState
from keepstep.storage.base import Storage


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
    reader = open_checkpoint(str(path)) or _stock_reader(str(path))
    with state.steady():
        fit = fit_state(reader, state, where=str(path), is_partial=True)
        load_state(reader, state, fit, with_rng=False)


def _stock_reader(path: str) -> StockReader:
    if "://" in path:
        raise ConfigError(f"{path} is no checkpoint of keepstep's: write URI/{STEPS}NAME")
    return StockReader(Path(path).absolute())


def load_snapshot(
    storage: Storage, manifest: Manifest, state: AppState, selection: Selection
) -> None:
    """Load tracked objects from a checkpoint of their own run; generators are left alone.

    *Ranks:* local. *Raises:* as :func:`load`.
    """
    reader = ShardReader(storage, Snapshot.open(storage, manifest))
    with state.steady():
        fit = fit_state(reader, state, selection, where=str(manifest.id))
        load_state(reader, state, fit, with_rng=False)


def load_weights(source: str, state: AppState, selection: Selection) -> tuple[Difference, ...]:
    """Load tracked modules, and nothing else, from wherever there are weights.

    *Ranks:* local; sharded modules read their shards.
    *Raises:* as :func:`load`. Returns what stays as it was because it does not fit.
    """
    modules = state.module_names()
    chosen = replace(selection, only=selection.only or tuple(modules))
    reader = open_source(source, modules)
    with state.steady():
        fit = fit_state(reader, state, chosen, where=source, is_partial=True)
        load_state(reader, state, fit, with_rng=False)
    return fit.left
