"""Power cuts at the system calls of the real session, with tensors."""

import secrets
import shutil
from pathlib import Path

import pytest
import torch

import keepstep
from keepstep.commit.catalog import Catalog
from keepstep.commit.verify import verify_checkpoint
from keepstep.errors import KeepstepError
from keepstep.storage.local import LocalStorage
from keepstep.testing.block_device import FILE_SYSTEMS, CuttableDisk
from keepstep.testing.power.cut import Point, PowerCut, PowerLost, Weather
from power.disks import disk

STEPS = 4


def model_at(step: int) -> torch.nn.Linear:
    """A MiB and a bit of numbers that tell the step."""
    model = torch.nn.Linear(600, 450)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
    return model


def train(uri: Path, reported: list[int]) -> None:
    """Save every step; note those that were reported as committed."""
    model = model_at(0)
    with keepstep.open(str(uri), every=1, mode="sync") as session:
        session.track(model=model)
        session.restore()
        while session.step < STEPS:
            model.load_state_dict(model_at(session.step + 1).state_dict())
            session.tick(samples=1)
            assert session.latest is not None
            reported.append(session.latest.step)


def cut_at(cuttable: CuttableDisk, point: Point | None, weather: Weather) -> PowerCut:
    """Train until the power goes; then recover, and look at what there is."""
    root = cuttable.path / f"run-{secrets.token_hex(4)}"
    cut, reported = PowerCut(cuttable, point, weather), [0]
    with cut.watching():
        try:
            train(root, reported)
        except (PowerLost, KeepstepError):
            assert cut.is_off
    if point is None:
        return cut
    cut.end()
    reached = reported[-1]
    cuttable.remount()
    for checkpoint in Catalog(LocalStorage(root)).candidates():
        assert verify_checkpoint(LocalStorage(root), checkpoint) == []
    model = model_at(0)
    with keepstep.open(str(root), every=1, mode="sync") as session:
        session.track(model=model)
        session.restore()
        assert reached <= session.step <= reached + 1
        assert torch.equal(model.weight, model_at(session.step).weight)
        session.tick(samples=1)
    assert session.latest is not None
    assert session.latest.step == session.step
    shutil.rmtree(root)
    cuttable.sync()
    return cut


def test_a_session_recovers_from_some_cuts(ext4: CuttableDisk) -> None:
    calls = len(cut_at(ext4, None, Weather.CALM).calls)
    for number in range(10, calls, 45):
        cut_at(ext4, Point(number), Weather.JOURNAL)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("weather", [Weather.CALM, Weather.JOURNAL])
@pytest.mark.parametrize("name", FILE_SYSTEMS)
def test_a_session_recovers_from_a_cut_at_every_call(name: str, weather: Weather) -> None:
    with disk(name) as cuttable:
        calls = len(cut_at(cuttable, None, weather).calls)
        assert calls > 100
        for number in range(calls):
            cut_at(cuttable, Point(number), weather)
