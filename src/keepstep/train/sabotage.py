"""Restores that are broken on purpose, after everything that proves them right: drills must notice.

Reached only by the failpoint action ``spoil:NAME`` at the site ``load.after``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import keepstep
from keepstep.commit.catalog import Catalog
from keepstep.session.session import Session
from keepstep.storage.opening import open_storage


def sabotage(
    name: str, *, session: Session, state: dict[str, Any], make_model: Callable[[], nn.Module]
) -> None:
    """Undo one part of what was just restored.

    Args:
        state: Of the trainer, by name.
        make_model: Builds the model as it is before anything is loaded.

    *Ranks:* local. *Raises:* ``KeyError`` for a name that is none of :data:`SABOTAGES`.
    """
    SABOTAGES[name](_Restored(session, state, make_model))


@dataclass(frozen=True, slots=True)
class _Restored:
    session: Session
    state: dict[str, Any]
    make_model: Callable[[], nn.Module]


def _moment(restored: _Restored) -> None:
    """One element of the first moment of one parameter is off by one unit in the last place."""
    moments = (entry["exp_avg"] for entry in restored.state["optim"].state.values())
    local = next(part for moment in moments if (part := _local(moment)).numel())
    element = local.view(-1)[:1]
    element.copy_(torch.nextafter(element, torch.full_like(element, torch.inf)))


def _layer(restored: _Restored) -> None:
    """The parameters of one layer are as they were built."""
    with torch.random.fork_rng(devices=[]):
        built = list(restored.make_model().parameters())
    live = list(restored.state["model"].parameters())
    with torch.no_grad():
        for fresh, parameter in zip(built[-2:], live[-2:], strict=True):
            _local(parameter).copy_(_same_part(parameter, fresh))


def _rng(restored: _Restored) -> None:
    """The generator of torch starts anew."""
    torch.manual_seed(restored.session.step)


def _sampler(restored: _Restored) -> None:
    """The position in the data is one sample ahead."""
    restored.session.samples += 1


def _schedule(restored: _Restored) -> None:
    """The learning rate starts anew."""
    restored.state["sched"].load_state_dict({"step": 0})


def _older_shard(restored: _Restored) -> None:
    """This rank's part of the model is that of the checkpoint before."""
    session = restored.session
    candidates = Catalog(open_storage(session.uri)).candidates()
    older = next(id for id in candidates if id != session.latest)
    keepstep.load(f"{session.uri}/{older.prefix}", model=restored.state["model"])


SABOTAGES = {
    "moment": _moment,
    "layer": _layer,
    "rng": _rng,
    "sampler": _sampler,
    "schedule": _schedule,
    "older-shard": _older_shard,
}


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _same_part(parameter: Tensor, whole: Tensor) -> Tensor:
    """Of ``whole`` what this rank holds of ``parameter``."""
    if not isinstance(parameter, DTensor):
        return whole
    (chunk,) = parameter.__create_chunk_list__()
    for dimension, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
        whole = whole.narrow(dimension, offset, size)
    return whole
