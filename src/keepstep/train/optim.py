"""AdamW, its parameter groups, the learning rate and the gradient norm."""

from collections.abc import Sequence
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Optimizer

from keepstep.config import OptimConfig
from keepstep.train.gradients import exact_norm


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW in two groups: matrices and filters decay; norms, biases and embeddings do not.

    An embedding's rows are not multiplied into anything large, and most get no gradient in a step;
    decay would only shrink rare ones. A tied output layer is the embedding.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        is_decayed = parameter.dim() >= 2 and id(parameter) not in embeddings
        (decayed if is_decayed else plain).append(parameter)
    optimizer = AdamW([{"params": decayed}, {"params": plain}])
    apply_options(optimizer, config)
    return optimizer


def apply_options(optimizer: Optimizer, config: OptimConfig) -> None:
    """Set the configured options in the groups that `make_optimizer` made.

    To be called after a restore too: an optimizer brings back the options it was saved with, and
    an accepted change of the configuration must win over them.
    """
    for group, weight_decay in zip(optimizer.param_groups, (config.weight_decay, 0.0), strict=True):
        group.update(lr=config.lr, betas=config.betas, weight_decay=weight_decay)


def learning_rate(step: int, config: OptimConfig) -> float:
    """Linear warm-up, then a cosine down to ``lr * min_lr_ratio`` at ``decay_steps``, then flat.

    Args:
        step: optimizer steps completed before the one that uses the rate.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    horizon = config.decay_steps - config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / horizon)
    ratio = config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + cos(pi * progress)) / 2
    return config.lr * ratio


class Schedule:
    """Sets the rate of every group as a function of the step.

    Its only state is the step. Unlike torch's schedulers it does not bring back the base rate it
    was saved with: the configuration decides.
    """

    def __init__(self, optimizer: Optimizer, config: OptimConfig) -> None:
        self._optimizer = optimizer
        self._config = config
        self._step = 0
        self.apply()

    @property
    def rate(self) -> float:
        """The rate that the next optimizer step uses."""
        return learning_rate(self._step, self._config)

    def step(self) -> None:
        """Go on to the next step, also after one that a loss scaler skipped."""
        self._step += 1
        self.apply()

    def apply(self) -> None:
        """Set the rate in the optimizer; to be called again when its options were replaced."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate

    def state_dict(self) -> dict[str, int]:
        """The step."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved step."""
        self._step = int(state["step"])
        self.apply()


def clip_gradients(model: nn.Module, max_norm: float, *, is_exact: bool = False) -> Tensor:
    """Scale all gradients down so that their common 2-norm is at most ``max_norm``; 0 leaves them.

    Args:
        is_exact: whether the norm must have the same bits however gradients are sharded.

    *Ranks:* collective where gradients are sharded.

    Returns:
        The norm before clipping, a plain 0-d tensor equal on all ranks.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = exact_norm(parameters) if is_exact else _norm(parameters)
    if max_norm > 0:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
    norm = get_total_norm(gradients)
    return torch.as_tensor(norm.full_tensor() if isinstance(norm, DTensor) else norm)
