"""Jobs of two ranks on the server, and what must hold of a run whatever went wrong."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from models import Model, adamw, step
from torch.distributed.fsdp import fully_shard

import keepstep
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import MANIFEST, STEPS
from keepstep.commit.verify import verify_checkpoint
from keepstep.errors import KeepstepError
from keepstep.observability.counters import COUNTERS
from keepstep.session.session import Session
from keepstep.storage.opening import open_storage
from keepstep.storage.retrying import RETRIES, RetryPolicy
from keepstep.storage.s3 import S3Storage

RunRanks = Callable[..., list[Any]]

SMALL_ROWS = 37
LARGE_ROWS = 200_000
"""Of a model whose shards are uploaded in parts."""


@dataclass(frozen=True)
class Outcome:
    """How a job went, from one rank's point of view."""

    step: int
    restored_step: int
    error: KeepstepError | None
    retries: int


def train(
    rank: int,
    uri: str,
    steps: int,
    options: dict[str, Any],
    rows: int = SMALL_ROWS,
    after_step: Callable[[int, Session], None] | None = None,
) -> Outcome:
    """Train until ``steps`` or an error; both are results."""
    del rank
    torch.manual_seed(0)
    model = fully_shard(Model(rows))
    optimizer = adamw(model)
    reached = restored_step = 0
    error = None
    try:
        with keepstep.open(uri, **{"timeout_seconds": 30, **options}) as session:
            session.track(model=model, optim=optimizer)
            reached = restored_step = session.restore().step
            while session.step < steps:
                step(model, optimizer)
                stop = session.tick()
                reached = session.step
                if stop is not None:
                    break
                if after_step is not None:
                    after_step(reached, session)
    except KeepstepError as raised:
        error = raised
    return Outcome(reached, restored_step, error, COUNTERS.total(RETRIES))


def ask_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions repeat requests as often as ever, with shorter waits in between."""
    quick = partial(RetryPolicy, longest_wait_seconds=0.1)
    monkeypatch.setattr(sys.modules["keepstep.session.opening"], "RetryPolicy", quick)


def store_of(uri: str) -> S3Storage:
    storage = open_storage(uri)
    assert isinstance(storage, S3Storage)
    return storage


def committed_steps(storage: S3Storage) -> list[int]:
    return sorted(checkpoint.step for checkpoint in Catalog(storage).candidates())


def check_run(storage: S3Storage) -> None:
    """Everything committed verifies, and is all there is: no objects of others, no parts."""
    kept: set[str] = set()
    for checkpoint in Catalog(storage).candidates():
        assert verify_checkpoint(storage, checkpoint) == []
        manifest = Catalog(storage).manifest(checkpoint)
        kept |= {checkpoint.key(record.file) for record in manifest.objects}
        kept.add(checkpoint.key(MANIFEST))
    assert {info.key for info in storage.list(STEPS)} == kept
    assert storage.uploads("") == ()
