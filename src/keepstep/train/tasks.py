"""What is trained: a model, its data and its loss, behind one protocol that the loop relies on."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from keepstep.config import Config
from keepstep.data.prepared import is_begun
from keepstep.data.text import TextTokens, open_prepared, open_stdlib
from keepstep.data.token_run import TokenRun
from keepstep.errors import ConfigError
from keepstep.train.models import GPT, DigitClassifier, GPTShape

Batch = tuple[Tensor, Tensor]
"""Inputs and targets; the first dimension is that of the samples."""


class Task(Protocol):
    """Another model or another data set is another class with these members."""

    @property
    def num_samples(self) -> int:
        """Samples to train on, with ids from 0."""

    @property
    def num_validation_samples(self) -> int:
        """Samples to evaluate on, with ids from 0."""

    @property
    def tokens_per_sample(self) -> int:
        """Predictions that the loss of a sample is the mean of."""

    @property
    def data_digest(self) -> str:
        """Names the data by content: a resume on other data is refused."""

    def make_model(self) -> nn.Module:
        """A new model on the CPU, with weights from torch's default generator."""

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The repeated parts of ``model``: sharded, recomputed and compiled one by one."""

    def train_batch(self, ids: NDArray[np.int64]) -> Batch:
        """Training samples by id, on the CPU."""

    def validation_batch(self, ids: NDArray[np.int64]) -> Batch:
        """Validation samples by id, on the CPU."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the samples of ``batch``, a float32 scalar; calls ``model`` once."""


def open_task(config: Config) -> Task:
    """The configured task, its data prepared if need be.

    *Ranks:* collective: all must see the same data.
    *Raises:* ConfigError if the data is missing, too short, or differs between ranks.
    """
    task: Task = TextTask.open(config) if config.task == "text" else DigitsTask.open(config)
    _check_same_data(task)
    return task


@dataclass(frozen=True, slots=True)
class TextTask:
    """Prediction of the next token, by default of the Python standard library's own source."""

    tokens: TextTokens
    context: int
    shape: GPTShape

    @classmethod
    def open(cls, config: Config) -> "TextTask":
        """Map what was prepared in ``data.path``; else prepare the library's source there."""
        path = Path(config.data.path)
        tokens = open_prepared(path) if is_begun(path) else open_stdlib(path)
        shape = GPTShape(
            vocabulary=tokens.vocabulary,
            layers=config.model.layers,
            width=config.model.width,
            heads=config.model.heads,
            tied=config.model.tied,
            dropout=config.model.dropout,
        )
        task = cls(tokens, config.data.context, shape)
        if not task.num_samples or not task.num_validation_samples:
            raise ConfigError(
                f"data.context = {task.context} is longer than a part of the token file "
                f"({len(tokens.train)} tokens to train on, {len(tokens.validation)} to validate)"
            )
        return task

    @property
    def num_samples(self) -> int:
        return self.tokens.train.num_windows(self.context)

    @property
    def num_validation_samples(self) -> int:
        return self.tokens.validation.num_windows(self.context)

    @property
    def tokens_per_sample(self) -> int:
        return self.context

    @property
    def data_digest(self) -> str:
        return self.tokens.digest

    def make_model(self) -> nn.Module:
        return GPT(self.shape)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        assert isinstance(model, GPT)
        return list(model.blocks)

    def train_batch(self, ids: NDArray[np.int64]) -> Batch:
        return self._batch(self.tokens.train, ids)

    def validation_batch(self, ids: NDArray[np.int64]) -> Batch:
        return self._batch(self.tokens.validation, ids)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        logits: Tensor = model(inputs)
        return cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def _batch(self, tokens: TokenRun, ids: NDArray[np.int64]) -> Batch:
        rows = torch.from_numpy(tokens.windows(ids, self.context))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


@dataclass(frozen=True, slots=True)
class DigitsTask:
    """Classification of scikit-learn's 1797 handwritten digits; the last 297 validate."""

    images: Tensor
    """Shape (1797, 1, 8, 8), values in [-1, 1]."""
    labels: Tensor
    width: int
    layers: int
    dropout: float

    _NUM_TRAIN = 1500

    @classmethod
    def open(cls, config: Config) -> "DigitsTask":
        """Read the images that lie inside the scikit-learn package."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ConfigError(
                "task = digits needs scikit-learn: pip install 'keepstep[digits]'"
            ) from error
        pixels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1
        model = config.model
        return cls(images, torch.from_numpy(labels), model.width, model.layers, model.dropout)

    @property
    def num_samples(self) -> int:
        return self._NUM_TRAIN

    @property
    def num_validation_samples(self) -> int:
        return len(self.labels) - self._NUM_TRAIN

    @property
    def tokens_per_sample(self) -> int:
        return 1

    @property
    def data_digest(self) -> str:
        content = sha256(self.images.numpy().tobytes() + self.labels.numpy().tobytes())
        return f"sha256:{content.hexdigest()}"

    def make_model(self) -> nn.Module:
        return DigitClassifier(self.width, self.layers, self.dropout)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        assert isinstance(model, DigitClassifier)
        return list(model.blocks)

    def train_batch(self, ids: NDArray[np.int64]) -> Batch:
        chosen = torch.from_numpy(ids)
        return self.images[chosen], self.labels[chosen]

    def validation_batch(self, ids: NDArray[np.int64]) -> Batch:
        return self.train_batch(ids + self._NUM_TRAIN)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        logits: Tensor = model(images)
        return cross_entropy(logits.float(), labels)


def _check_same_data(task: Task) -> None:
    """Nodes may have prepared their own data: the same position must be the same sample on all."""
    if not dist.is_initialized():
        return
    digests: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(digests, task.data_digest)
    if strangers := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
        raise ConfigError(
            f"the data of ranks {', '.join(map(str, strangers))} differs from that of rank 0: "
            "prepare it once and let data.path name one copy, shared or distributed"
        )
