"""Sixteen processes want the same name: one gets it, and each of them knows which one."""

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest

from keepstep.commit.layout import MANIFEST, CheckpointId, generation_key
from keepstep.commit.lineage import claim_generation, read_generation
from keepstep.errors import FencedError, KeepstepError, ObjectExists
from keepstep.storage.base import Storage
from keepstep.storage.opening import open_storage
from keepstep.testing.fault_proxy import FaultProxy
from keepstep.testing.faults import LoseReply

RACERS = 16
MANIFEST_KEY = CheckpointId(7, 1, "0123456789ab").key(MANIFEST)


def create_manifest(storage: Storage, racer: int) -> str:
    storage.create(MANIFEST_KEY, b"by %d" % racer)
    return f"by {racer}"


def claim(storage: Storage, racer: int) -> str:
    del racer
    return claim_generation(storage, newest_seen=0, world_size=1, resumed_from=None).nonce


def race(uri: str, act: Callable[[Storage, int], str]) -> list[str]:
    """What each process says: what it won, or the kind of error it got."""
    context = get_context("fork")
    start = context.Barrier(RACERS)
    results = context.SimpleQueue()
    racers = [
        context.Process(target=_run, args=(uri, act, racer, start, results), daemon=True)
        for racer in range(RACERS)
    ]
    for process in racers:
        process.start()
    said = [results.get() for _ in racers]
    for process in racers:
        process.join()
    return said


def _run(
    uri: str, act: Callable[[Storage, int], str], racer: int, start: Barrier, results: Any
) -> None:
    storage = open_storage(uri)
    list(storage.list("warm/"))  # connected: all are at the line
    start.wait()
    try:
        results.put(act(storage, racer))
    except KeepstepError as error:
        results.put(type(error).__name__)


@pytest.mark.parametrize("loses_replies", [False, True])
def test_one_process_creates_the_manifest_and_all_know_who(
    s3_uri: str, proxy: FaultProxy, loses_replies: bool
) -> None:
    if loses_replies:
        proxy.inject(LoseReply(), method="PUT", path=MANIFEST_KEY, times=RACERS)
    said = race(s3_uri, create_manifest)
    assert said.count(ObjectExists.__name__) == RACERS - 1
    (winner,) = set(said) - {ObjectExists.__name__}
    assert open_storage(s3_uri).get(MANIFEST_KEY) == winner.encode()


@pytest.mark.parametrize("loses_replies", [False, True])
def test_one_process_claims_the_generation_and_all_know_who(
    s3_uri: str, proxy: FaultProxy, loses_replies: bool
) -> None:
    if loses_replies:
        proxy.inject(LoseReply(), method="PUT", path=generation_key(1), times=RACERS)
    said = race(s3_uri, claim)
    assert said.count(FencedError.__name__) == RACERS - 1
    (winner,) = set(said) - {FencedError.__name__}
    assert read_generation(open_storage(s3_uri), 1).nonce == winner
