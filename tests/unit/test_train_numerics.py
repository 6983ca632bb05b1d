from collections.abc import Callable

import pytest
import torch

from keepstep.config import Config, explain_change
from keepstep.errors import ConfigError
from keepstep.train.numerics import Numerics, pinned_kernels, plan_numerics
from keepstep.train.parallel import Layout

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
DDP, FSDP = Layout("ddp", {"replicate": 2}), Layout("fsdp", {"shard": 2})


def numerics(
    mode: str, device: torch.device = CPU, layout: Layout = DDP, **settings: object
) -> Numerics:
    train = {"numerics": mode, "precision": settings.pop("precision", "fp32")}
    config = Config.model_validate({"train": train, "parallel": settings})
    return plan_numerics(config, layout, device)


@pytest.mark.parametrize(("device", "mode"), [(CPU, "exact"), (CUDA, "fast"), (MPS, "fast")])
def test_auto_is_exact_on_cpu_only(device: torch.device, mode: str) -> None:
    assert numerics("auto", device).mode == mode
    assert numerics("auto", device).conditions["train.numerics"] == mode


def test_exact_needs_float64() -> None:
    with pytest.raises(ConfigError, match=r"train\.numerics = exact needs float64, which mps"):
        numerics("exact", MPS)


def test_number_of_threads_is_a_condition_of_exact_mode_only() -> None:
    count = torch.get_num_threads()
    assert numerics("exact").conditions["train.threads"] == count
    assert "train.threads" not in numerics("fast").conditions


def test_a_change_of_threads_is_explained() -> None:
    saved = numerics("exact").conditions
    table = explain_change(saved, saved | {"train.threads": 64})
    assert table is not None
    assert table.splitlines()[1].split() == ["train.threads", str(saved["train.threads"]), "64"]


def test_where_fsdp_casts_parameters_exact_mode_does_not_mix_it_with_autocast() -> None:
    by_layout = [numerics("exact", layout=one, precision="bf16") for one in (DDP, FSDP)]
    assert [one.conditions["precision.casts"] for one in by_layout] == ["autocast", "parameters"]
    assert numerics("exact", layout=DDP).conditions == numerics("exact", layout=FSDP).conditions


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (lambda: numerics("exact"), "numerics=exact: the same bits at any world size"),
        (lambda: numerics("fast"), "numerics=fast: the same bits at the same world size"),
        (
            lambda: numerics("exact", compile=True),
            (
                "numerics=exact: the same bits at any world size, unless "
                "parallel.compile generates other kernels after a restart"
            ),
        ),
        (
            lambda: numerics("exact", CUDA),
            (
                "numerics=exact: the same bits at any world size, unless "
                "the model of the GPU or the version of CUDA changes"
            ),
        ),
    ],
)
def test_one_line_says_what_is_promised(made: Callable[[], Numerics], line: str) -> None:
    assert str(made()) == line


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_only_exact_mode_insists_on_deterministic_kernels_and_only_while_it_trains(
    mode: str,
) -> None:
    fills = torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(ZeroDivisionError), pinned_kernels(numerics(mode)):
        assert torch.are_deterministic_algorithms_enabled() == (mode == "exact")
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == fills


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    told = pytest.raises(RuntimeError, match=r"put_ does not have a deterministic")
    with pinned_kernels(numerics("exact")), told:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
