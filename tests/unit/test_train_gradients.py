from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from keepstep.train import gradients
from keepstep.train.gradients import GradientSums, divide_gradients, exact_norm


def parameters(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([value])) for value in values]


def gradient_of(slots: Sequence[float]) -> Tensor:
    """The mean over slots whose gradients are given."""
    (parameter,) = parameters(0.0)
    sums = GradientSums([parameter])
    for slot in slots:
        (parameter * slot).sum().backward()
    sums.reduce()
    divide_gradients([parameter], len(slots))
    assert parameter.grad is not None
    return parameter.grad


def test_order_of_slots_does_not_show() -> None:
    slots = (2.0**24, 1.0, -(2.0**24), 0.1)  # float32 sums of them differ by a third
    found = {gradient_of(order).item() for order in permutations(slots)}
    expected = torch.tensor(1.0 + torch.tensor(0.1).double().item()).float() / 4
    assert found == {expected.item()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradient_has_the_format_of_the_parameter(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=dtype))
    sums = GradientSums([parameter])
    (parameter * 3).sum().backward()
    sums.reduce()
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, torch.full((2,), 3, dtype=dtype))


@pytest.mark.parametrize("slots", [(-0.0,), (-0.0, -0.0), (0.0, -0.0)])
def test_zero_has_one_sign(slots: Sequence[float]) -> None:
    """A padding pass may add a zero of either sign."""
    assert not torch.signbit(gradient_of(slots)).any()


def test_divided_zero_has_one_sign() -> None:
    (parameter,) = parameters(1.0)
    parameter.grad = torch.tensor([-0.0])  # as FSDP leaves it
    divide_gradients([parameter], 3)
    assert not torch.signbit(parameter.grad).any()


def test_unused_parameter_has_no_gradient_and_a_late_one_is_counted() -> None:
    used, unused, late = parameters(1.0, 1.0, 1.0)
    sums = GradientSums([used, unused, late])
    (used * 2).sum().backward()
    (used * 2 + late * 3).sum().backward()
    sums.reduce()
    assert (used.grad, unused.grad, late.grad) == (torch.tensor([4.0]), None, torch.tensor([3.0]))


def test_frozen_parameter_is_left_alone() -> None:
    (frozen,) = parameters(1.0)
    frozen.requires_grad = False
    GradientSums([frozen]).reduce()
    assert frozen.grad is None


def test_each_step_begins_anew() -> None:
    (parameter,) = parameters(1.0)
    sums = GradientSums([parameter])
    for _ in range(2):
        (parameter * 2).sum().backward()
        sums.reduce()
        assert parameter.grad == torch.tensor([2.0])
        parameter.grad = None
    sums.reduce()
    assert parameter.grad is None


def test_gradients_are_not_held_beside_their_sums() -> None:
    (parameter,) = parameters(1.0)
    sums = GradientSums([parameter])
    (parameter * 2).sum().backward()
    assert parameter.grad is None
    sums.reduce()
    assert parameter.grad is not None


def test_any_cut_into_buckets_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "_BUCKET_ELEMENTS", 3)
    tensors = [nn.Parameter(torch.ones(size)) for size in (2, 2, 5, 1, 1)]
    sums = GradientSums(tensors)
    sum((tensor * number).sum() for number, tensor in enumerate(tensors, start=1)).backward()
    sums.reduce()
    for number, tensor in enumerate(tensors, start=1):
        assert torch.equal(tensor.grad, torch.full_like(tensor, number))


def test_norm_is_of_all_gradients_and_rounded_once() -> None:
    one, other, unused = parameters(0.0, 0.0, 0.0)
    one.grad, other.grad = torch.tensor([3.0]), torch.tensor([4.0])
    norm = exact_norm([one, other, unused])
    assert norm == 5.0
    assert (norm.dtype, norm.dim()) == (torch.float32, 0)


def test_norm_does_not_overflow_in_squares() -> None:
    (parameter,) = parameters(0.0)
    parameter.grad = torch.tensor([1e30])
    assert exact_norm([parameter]) == torch.tensor(1e30)


def test_norm_without_gradients_is_zero() -> None:
    assert exact_norm(parameters(1.0)) == 0.0
