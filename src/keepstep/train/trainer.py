"""One optimizer step: gradients accumulated over microbatches, then the update."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from keepstep.config import OptimConfig
from keepstep.data.sampler import Slot
from keepstep.train.optim import Schedule, apply_options, clip_gradients, make_optimizer
from keepstep.train.parallel import Parallel
from keepstep.train.precision import make_scaler
from keepstep.train.tasks import Task


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean loss of each slot that this rank ran, padding left out."""

    by_slot: dict[int, Tensor]
    weights: dict[int, float]

    @property
    def weighted_sum(self) -> float:
        """This rank's part of the global loss times the world size."""
        return sum(loss.item() * self.weights[slot] for slot, loss in self.by_slot.items())


@dataclass(frozen=True, slots=True)
class Update:
    """What an optimizer step did."""

    grad_norm: Tensor
    """Before clipping; not finite if the step was skipped."""
    learning_rate: float


class Trainer:
    """A model with its optimizer, schedule and loss scaler."""

    def __init__(self, parallel: Parallel, task: Task, config: OptimConfig) -> None:
        self._parallel = parallel
        self._task = task
        self._config = config
        self._optimizer = make_optimizer(parallel.module, config)
        self._schedule = Schedule(self._optimizer, config)
        self._scaler = make_scaler(parallel.precision, parallel.device)
        parallel.forward.train()

    def state(self) -> dict[str, object]:
        """Everything here that must come back after a restart, by name."""
        parts: dict[str, object] = {
            "model": self._parallel.module,
            "optim": self._optimizer,
            "sched": self._schedule,
        }
        return parts | ({"scaler": self._scaler} if self._scaler else {})

    def configure(self) -> None:
        """Let the configuration win over options that a restore brought back."""
        apply_options(self._optimizer, self._config)
        self._schedule.apply()

    def accumulate(self, slots: Sequence[Slot]) -> Losses:
        """Leave the gradient of the mean loss over the global batch in the parameters.

        Each slot weighs the same wherever it runs, and reduction averages over ranks: but for
        rounding, the gradient does not depend on the number of ranks.

        *Ranks:* collective, with equally many slots.
        """
        by_slot, weights = {}, {}
        for number, slot in enumerate(slots, start=1):
            with self._parallel.reducing(is_last=number == len(slots)):
                loss = self._loss(slot)
                weighted = loss * slot.weight
                (self._scaler.scale(weighted) if self._scaler else weighted).backward()
            if not slot.is_padding:
                by_slot[slot.index] = loss.detach()
                weights[slot.index] = slot.weight
        return Losses(by_slot, weights)

    def update(self) -> Update:
        """Clip, step, forget the gradients.

        A step that the loss scaler skips counts as a step all the same: its samples are consumed
        and the schedule goes on, so that data, schedule and step never part.

        *Ranks:* collective.
        """
        learning_rate = self._schedule.rate
        if self._scaler:
            self._scaler.unscale_(self._optimizer)
        grad_norm = clip_gradients(self._parallel.module, self._config.clip_norm)
        if self._scaler:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Update(grad_norm, learning_rate)

    def _loss(self, slot: Slot) -> Tensor:
        batch = self._parallel.to_device(self._task.train_batch(slot.ids))
        with self._parallel.computing():
            return self._task.loss(self._parallel.forward, batch)
