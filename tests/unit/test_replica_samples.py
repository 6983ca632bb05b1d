"""Samples tell tensors apart by where they begin and end, whatever their strides and dtypes."""

import pytest
import torch

from keepstep.checkpoint.samples import check_alike, samples_of
from keepstep.errors import ConfigError

TENSORS = {
    "small": torch.arange(35).view(7, 5),
    "scalar": torch.tensor(3.0),
    "long": torch.arange(99_999, dtype=torch.bfloat16),
    "wide": torch.arange(300_000.0).view(3, 100_000),
    "transposed": torch.arange(15_000.0).view(50, 300).t(),
    "strided": torch.arange(50_000)[::2],
}


def sample(tensor: torch.Tensor) -> int:
    return samples_of({"w": tensor}, lambda _: True)["w"]


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_a_sample_is_of_the_beginning_and_the_end_in_any_layout(tensor: torch.Tensor) -> None:
    assert sample(tensor) == sample(tensor.clone(memory_format=torch.contiguous_format))
    for changed in (0, -1):
        other = tensor.clone(memory_format=torch.contiguous_format)
        other.view(-1)[changed] = -7
        assert sample(other) != sample(tensor)


def test_an_empty_tensor_has_a_sample() -> None:
    assert sample(torch.empty(0, 3)) == sample(torch.empty(0))


def test_only_what_is_wanted_is_sampled() -> None:
    entries = {"w": torch.ones(2), "buffer": torch.ones(2), "value": 3}
    assert samples_of(entries, lambda fqn: fqn != "buffer").keys() == {"w"}


def test_the_first_that_ranks_hold_differently_is_named() -> None:
    check_alike([{"a": 1}, {"b": 2}, {"a": 1, "b": 2}])
    with pytest.raises(ConfigError, match="state entry b differs between ranks 1 and 2"):
        check_alike([{"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 3}])
