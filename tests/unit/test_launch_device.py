"""Which device a rank trains on."""

import logging
from pathlib import Path

import pytest
import torch

from keepstep.launch import job
from keepstep.launch.job import choose_device
from keepstep.world import World

ALONE = World()


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with a GPU, and a torch that knows none."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(job, "_FIRST_GPU", tmp_path / "nvidia0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_torch_cannot_use_is_not_passed_over_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "keepstep.launch"):
        assert choose_device(ALONE, {}).type == "cpu"
    (record,) = caplog.records
    assert torch.__version__ in record.getMessage()


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_hidden_on_purpose_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "keepstep.launch"):
        assert choose_device(ALONE, {"CUDA_VISIBLE_DEVICES": ""}).type == "cpu"
    assert not caplog.records
