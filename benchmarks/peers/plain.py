"""Files without a protocol: one per rank, or the first rank's alone where all hold the same."""

from abc import abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.files import make_durable
from benchmarks.peers.base import Peer
from benchmarks.scenario import Scenario


class _PlainFile(Peer):
    """Cannot be loaded at another number of ranks, and nothing says that all files belong together.

    The fsync is ours: neither library makes its file durable.
    """

    suffix: ClassVar[str]

    def save(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        if not self.context.is_replicated or self.context.ranks.is_first:
            file = self._file(directory)
            self._write(file, self._named_tensors())
            make_durable(file)
        self.context.ranks.wait()
        return directory

    def load(self, saved: Path) -> None:
        self._read(self._file(saved), self._named_tensors())

    @abstractmethod
    def _write(self, file: Path, tensors: dict[str, Tensor]) -> None: ...

    @abstractmethod
    def _read(self, file: Path, into: dict[str, Tensor]) -> None: ...

    def _file(self, directory: Path) -> Path:
        rank = 0 if self.context.is_replicated else self.context.ranks.rank
        return directory / f"rank-{rank}{self.suffix}"

    def _named_tensors(self) -> dict[str, Tensor]:
        return {str(number): t for number, t in enumerate(self.context.state.local_tensors)}


class TorchSave(_PlainFile):
    """``torch.save`` and ``torch.load`` of the local tensors."""

    name = "torch.save"
    suffix = ".pt"

    def _write(self, file: Path, tensors: dict[str, Tensor]) -> None:
        torch.save(tensors, file)

    def _read(self, file: Path, into: dict[str, Tensor]) -> None:
        loaded: dict[str, Tensor] = torch.load(file, weights_only=True)
        for name, tensor in into.items():
            tensor.copy_(loaded[name])


class Safetensors(_PlainFile):
    """``save_file`` and ``safe_open``: the file is mapped, so reads are not counted."""

    name = "safetensors"
    suffix = ".safetensors"

    @classmethod
    def refusal(cls, scenario: Scenario) -> str | None:
        if find_spec("safetensors") is None:
            return "safetensors is not installed"
        return "takes contiguous tensors only" if scenario.shape == "strided" else None

    def _write(self, file: Path, tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        save_file(tensors, file)

    def _read(self, file: Path, into: dict[str, Tensor]) -> None:
        from safetensors import safe_open

        opened: Any
        with safe_open(file, "pt", device=self.context.scenario.device) as opened:
            for name, tensor in into.items():
                tensor.copy_(opened.get_tensor(name))
