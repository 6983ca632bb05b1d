"""The GPUs of a node: which one a rank trains on, and what becomes of one that has failed."""

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from keepstep.errors import ConfigError, DeviceError, ExitCode
from keepstep.launch import devices
from keepstep.launch.devices import choose_device, processes_of_node, shown_gpus
from keepstep.world import World

ALONE = World()
FOURTH = World(rank=3, local_rank=3, world_size=4, local_world_size=4)

# As torch and CUDA put it.
LOST = "Unexpected error from cudaGetDeviceCount(). Error 999: unknown error"
NONE = "No CUDA GPUs are available"
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update"
ECC = "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be reported later"
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"
NO_MEMORY = "CUDA error: out of memory"

Cuda = Callable[..., None]


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Set the scene: how many GPUs the machine shows, how many work, what is said of the others."""
    monkeypatch.setattr(devices, "_DEVICES", tmp_path)
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-caps", "null"):
        (tmp_path / name).touch()

    def scene(
        shown: int, working: int = 0, *, starting: str = "", using: str = "", build: str | None = ""
    ) -> None:
        for number in range(shown):
            (tmp_path / f"nvidia{number}").touch()

        def init() -> None:
            if starting:
                raise RuntimeError(starting)

        def use(device: torch.device) -> None:
            if using:
                raise RuntimeError(using)

        monkeypatch.setattr(torch.version, "cuda", "12.8" if build == "" else build)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: working > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: working)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "synchronize", use)

    return scene


def test_each_rank_has_its_gpu(cuda: Cuda) -> None:
    cuda(4, 4)
    assert choose_device(FOURTH, {}) == torch.device("cuda", 3)


def test_a_machine_without_gpus_trains_on_its_cpu(cuda: Cuda) -> None:
    cuda(0, starting=NO_DRIVER)
    assert choose_device(ALONE, {}) == torch.device("cpu")


def test_a_build_without_cuda_does_not_pass_a_gpu_over_in_silence(
    cuda: Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    cuda(1, build=None)
    with caplog.at_level(logging.WARNING, "keepstep.launch"):
        assert choose_device(ALONE, {}).type == "cpu"
    (record,) = caplog.records
    assert torch.__version__ in record.getMessage()


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_on_purpose_are(
    cuda: Cuda, caplog: pytest.LogCaptureFixture, hidden: str
) -> None:
    cuda(8, starting=NONE)
    with caplog.at_level(logging.WARNING, "keepstep.launch"):
        assert choose_device(ALONE, {"CUDA_VISIBLE_DEVICES": hidden}).type == "cpu"
        assert processes_of_node("auto", {"CUDA_VISIBLE_DEVICES": hidden}) == "auto"
    assert not caplog.records


@pytest.mark.parametrize("trouble", [LOST, NONE, NO_DRIVER])
def test_gpus_that_do_not_answer_are_the_machines_fault(cuda: Cuda, trouble: str) -> None:
    cuda(4, starting=trouble)
    with pytest.raises(DeviceError) as caught:
        choose_device(ALONE, {})
    assert caught.value.exit_code == ExitCode.DEVICE == 71
    message = str(caught.value)
    assert message.startswith(
        f"CUDA finds 0 of the 4 GPUs that there should be ({devices._DEVICES}"
    )
    assert trouble in message
    assert "nvidia-smi" in message
    assert "Xid" in message
    assert "drain" in message


def test_a_driver_that_is_too_old_is_no_fault_of_the_machine(cuda: Cuda) -> None:
    cuda(4, starting=TOO_OLD)
    with pytest.raises(ConfigError, match="too old"):
        choose_device(ALONE, {})
    with pytest.raises(ConfigError, match="too old"):
        processes_of_node("auto", {})


def test_a_rank_whose_gpu_has_gone_blames_the_machine_and_a_rank_too_many_itself(
    cuda: Cuda,
) -> None:
    cuda(4, 3)
    with pytest.raises(DeviceError, match="CUDA finds 3 of the 4 GPUs"):
        choose_device(FOURTH, {})
    with pytest.raises(ConfigError, match="local rank 3 has no GPU: the node shows 3"):
        choose_device(FOURTH, {"CUDA_VISIBLE_DEVICES": "0,1,2"})


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        (
            ECC,
            DeviceError,
            r"cuda:0 cannot be used: CUDA error: uncorrectable ECC .* encountered\.",
        ),
        ("CUDA error: invalid device ordinal", DeviceError, "invalid device ordinal"),
        (NO_KERNEL, ConfigError, "no kernel image"),
    ],
)
def test_a_gpu_that_fails_at_its_first_use_is_judged_by_what_it_says(
    cuda: Cuda, trouble: str, kind: type[Exception], words: str
) -> None:
    cuda(1, 1, using=trouble)
    with pytest.raises(kind, match=words):
        choose_device(ALONE, {})


def test_a_gpu_that_is_full_may_be_empty_at_the_next_try(cuda: Cuda) -> None:
    cuda(1, 1, using=NO_MEMORY)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        choose_device(ALONE, {})
    assert type(caught.value) is RuntimeError


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (None, 8),
        ("", 0),
        ("0", 1),
        ("0, 3,5", 3),
        ("2,-1,3", 1),
        ("GPU-8a7c,GPU-91be", 2),
        ("MIG-1f2e,MIG-77ab", 1),
    ],
)
def test_the_variable_is_counted_as_cuda_reads_it(
    cuda: Cuda, value: str | None, number: int
) -> None:
    cuda(8)
    assert shown_gpus({} if value is None else {"CUDA_VISIBLE_DEVICES": value}) == number


@pytest.mark.parametrize(
    ("asked", "shown", "come_to"),
    [("auto", 4, "4"), ("gpu", 4, "4"), ("2", 4, "2"), ("6", 4, "6"), ("cpu", 4, "cpu")],
)
def test_a_sound_node_starts_as_many_processes_as_were_asked_for(
    cuda: Cuda, asked: str, shown: int, come_to: str
) -> None:
    cuda(shown, shown)
    assert processes_of_node(asked, {}) == come_to


def test_gpus_without_device_files_count_if_cuda_finds_them(cuda: Cuda) -> None:
    cuda(0, 2)
    assert processes_of_node("gpu", {}) == "2"


@pytest.mark.parametrize("asked", ["auto", "gpu", "1", "4"])
def test_a_node_without_a_working_gpu_starts_none(cuda: Cuda, asked: str) -> None:
    cuda(4, starting=LOST)
    with pytest.raises(DeviceError, match=r"CUDA finds 0 of the 4 GPUs .*: Unexpected error"):
        processes_of_node(asked, {})


def test_a_node_that_has_lost_one_gpu_joins_only_with_as_many_as_it_has_if_told_so(
    cuda: Cuda,
) -> None:
    cuda(4, 3)
    for asked in ("auto", "gpu", "4"):
        with pytest.raises(DeviceError, match="CUDA finds 3 of the 4 GPUs"):
            processes_of_node(asked, {})
    assert processes_of_node("3", {}) == "3"
    assert processes_of_node("auto", {"CUDA_VISIBLE_DEVICES": "0,1,2"}) == "3"


def test_without_gpus_the_number_is_left_to_torchrun(cuda: Cuda) -> None:
    cuda(0, starting=NO_DRIVER)
    assert processes_of_node("auto", {}) == "auto"
    assert processes_of_node("8", {}) == "8"
    cuda(4, build=None)
    assert processes_of_node("auto", {}) == "auto"


def test_gpus_that_are_asked_for_by_name_are_not_done_without(cuda: Cuda) -> None:
    cuda(0, starting=NO_DRIVER)
    with pytest.raises(DeviceError, match=r"finds 0 of the 1 GPUs .*: Found no NVIDIA driver"):
        processes_of_node("gpu", {})
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES= hides all GPUs"):
        processes_of_node("gpu", {"CUDA_VISIBLE_DEVICES": ""})
    cuda(4, build=None)
    with pytest.raises(ConfigError, match="is not built for CUDA"):
        processes_of_node("gpu", {})


def test_a_driver_that_never_answers_is_waited_for_no_longer_than_that(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda(1)
    monkeypatch.setattr(torch.cuda, "init", lambda: time.sleep(3600))
    monkeypatch.setattr(devices, "_ANSWER_SECONDS", 0.1)
    children: list[int] = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: children.append(fork()) or children[-1])
    with pytest.raises(DeviceError, match=r"the driver has not answered in 0\.1 s"):
        processes_of_node("auto", {})
    _, status = os.waitpid(children[-1], 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_driver_that_takes_along_who_asks_ends_nobody_else(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda(1)
    monkeypatch.setattr(torch.cuda, "init", lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DeviceError, match="the process that asked ended with -9"):
        processes_of_node("auto", {})
