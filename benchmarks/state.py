"""The state that is saved: a GPT-shaped module and its AdamW moments, filled with known numbers."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from benchmarks.scenario import Scenario, Shape

_BYTES_PER_PARAMETER = 12  # itself and two moments, in fp32
_TENSORS_PER_LAYER = 4 * 12  # each with two moments and a step
_PATTERN_LENGTH = 4_194_301  # a prime: no tensor repeats in step with its rows
_STEP = 7.0


class TrainingState:
    """Model and optimizer of one rank. Wiped and loaded again, it can be checked bit by bit.

    What a tensor holds depends on its number and the element's place in the whole tensor, so it is
    the same however the tensor is cut over ranks.
    """

    def __init__(self, scenario: Scenario, *, part: int, parts: int) -> None:
        self._part, self._parts = (part, parts) if scenario.strategy == "fsdp" else (0, 1)
        self.device = torch.device(scenario.device)
        self.model = _build_model(scenario, self.device)
        self.optimizer = AdamW(self.model.parameters(), lr=1e-3, foreach=False)
        for parameter in self.model.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(_STEP),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self._pattern = torch.from_numpy(
            np.random.default_rng(0).standard_normal(_PATTERN_LENGTH, dtype=np.float32)
        )
        self._state_dict: tuple[list[int], dict[str, Any]] = ([], {})
        self.fill()

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, as the model and the optimizer have them now: DTensors under FSDP."""
        found: list[Tensor] = []
        for parameter in self.model.parameters():
            moments = self.optimizer.state[parameter]
            found += [parameter, *(moments[name] for name in ("exp_avg", "exp_avg_sq", "step"))]
        return found

    @property
    def local_tensors(self) -> list[Tensor]:
        """This rank's memory."""
        return [_local(tensor) for tensor in self.tensors]

    @property
    def local_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.local_tensors)

    def state_dict(self) -> dict[str, Any]:
        """As ``get_state_dict`` gives it, made anew only when a load has replaced tensors."""
        identities, made = self._state_dict
        now = [id(tensor) for tensor in self.tensors]
        if now != identities:
            model, optimizer = get_state_dict(self.model, self.optimizer)
            made = {"model": model, "optim": optimizer}
            self._state_dict = (now, made)
        return made

    @torch.no_grad()
    def fill(self) -> None:
        """Put the known numbers into every tensor."""
        for number, tensor in enumerate(self.tensors):
            local = _local(tensor)
            local.copy_(self._expected(number, tensor))

    def synchronize(self) -> None:
        """Return when the device has done what was queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def wipe(self) -> None:
        """Put zeros everywhere: whatever is right afterwards was loaded."""
        for tensor in self.local_tensors:
            tensor.zero_()

    @torch.no_grad()
    def count_wrong(self) -> int:
        """Tensors that do not hold exactly the known numbers."""
        return sum(
            not torch.equal(_local(tensor).cpu(), self._expected(number, tensor))
            for number, tensor in enumerate(self.tensors)
        )

    def _expected(self, number: int, tensor: Tensor) -> Tensor:
        local = _local(tensor)
        if tensor.dim() == 0:
            return torch.tensor(_STEP)
        rows = math.ceil(tensor.shape[0] / self._parts)
        first_row = min(self._part * rows, tensor.shape[0])
        start = number * 7919 * 64 + first_row * math.prod(tensor.shape[1:])
        expected = torch.empty(local.numel())
        filled = 0
        while filled < len(expected):
            position = (start + filled) % _PATTERN_LENGTH
            count = min(_PATTERN_LENGTH - position, len(expected) - filled)
            expected[filled : filled + count] = self._pattern[position : position + count]
            filled += count
        return expected.view(local.shape)


class _Block(nn.Module):
    """A transformer block's parameters; it is never run."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class _Gpt(nn.Module):
    def __init__(self, width: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)


def _build_model(scenario: Scenario, device: torch.device) -> _Gpt:
    with torch.device("meta"):
        model = _Gpt(*_dimensions(scenario.size_mib, scenario.num_tensors, scenario.shape))
        if scenario.shape == "strided":
            _transpose_matrices(model)
    if scenario.strategy == "fsdp":
        mesh = dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model.to_empty(device=device)


def _dimensions(size_mib: int, num_tensors: int, shape: Shape) -> tuple[int, int, int]:
    """Width, layers and vocabulary that come to the size; the embedding takes what is left."""
    parameters = (size_mib << 20) / _BYTES_PER_PARAMETER
    layers = max(1, round(num_tensors / _TENSORS_PER_LAYER))
    share_of_blocks = 0.2 if shape == "giant" else 0.8
    width = max(8, int(math.sqrt(share_of_blocks * parameters / (12 * layers))) // 8 * 8)
    of_blocks = layers * (12 * width * width + 13 * width) + 2 * width
    return width, layers, max(8, int((parameters - of_blocks) / width))


def _transpose_matrices(model: nn.Module) -> None:
    """Every matrix becomes a view of one with rows and columns swapped: not contiguous."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 2:
            swapped = torch.empty(weight.shape[1], weight.shape[0])
            module.weight = nn.Parameter(swapped.t())


def _local(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        local: Tensor = tensor.to_local()
        return local.detach()
    return tensor.detach()
