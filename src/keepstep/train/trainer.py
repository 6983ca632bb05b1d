"""One optimizer step: gradients accumulated over microbatches, then the update."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from keepstep.config import OptimConfig
from keepstep.data.sampler import Slot
from keepstep.observability.waits import DATA_WAITS
from keepstep.train.optim import Schedule, apply_options, clip_gradients, make_optimizer
from keepstep.train.parallel import Parallel
from keepstep.train.precision import make_scaler
from keepstep.train.seeds import seed_all, slot_seed, step_seed
from keepstep.train.tasks import Task


@dataclass(frozen=True, slots=True)
class Update:
    """What an optimizer step did."""

    grad_norm: Tensor
    """Before clipping; not finite if the step was skipped."""
    learning_rate: float


class Trainer:
    """A model with its optimizer, schedule and loss scaler.

    Args:
        num_slots: of a global batch.
        seed: of what is drawn in exact mode.
    """

    def __init__(
        self, parallel: Parallel, task: Task, config: OptimConfig, *, num_slots: int, seed: int
    ) -> None:
        self._parallel = parallel
        self._task = task
        self._config = config
        self._num_slots = num_slots
        self._seed = seed
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

    def accumulate(self, slots: Sequence[Slot], *, step: int) -> dict[int, Tensor]:
        """Leave the gradient of the mean loss over the global batch in the parameters.

        Each slot weighs the same wherever it runs. In fast mode reduction averages over ranks: but
        for rounding, the gradient does not depend on their number. In exact mode it adds, and what
        a slot draws depends on the slot: no bit depends on the number of ranks.

        Args:
            step: optimizer steps completed before this one.

        *Ranks:* collective, with equally many slots.

        Returns:
            The mean loss of each slot that this rank ran, by index, padding left out.
        """
        losses = {}
        for number, slot in enumerate(slots, start=1):
            if slot.is_padding and not self._parallel.needs_padding:
                continue
            if self._parallel.is_exact:
                seed_all(slot_seed(self._seed, step, slot.index))
            with self._parallel.reducing(is_last=number == len(slots)):
                loss = self._loss(slot)
                weighted = loss * self._weight(slot)
                (self._scaler.scale(weighted) if self._scaler else weighted).backward()
            if not slot.is_padding:
                losses[slot.index] = loss.detach()
        self._parallel.finish_gradients(self._num_slots)
        if self._parallel.is_exact:
            seed_all(step_seed(self._seed, step))
        return losses

    def update(self) -> Update:
        """Clip, step, forget the gradients.

        A step that the loss scaler skips counts as a step all the same: its samples are consumed
        and the schedule goes on, so that data, schedule and step never part.

        *Ranks:* collective.
        """
        learning_rate = self._schedule.rate
        if self._scaler:
            self._scaler.unscale_(self._optimizer)
        grad_norm = clip_gradients(
            self._parallel.module, self._config.clip_norm, is_exact=self._parallel.is_exact
        )
        if self._scaler:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Update(grad_norm, learning_rate)

    def _weight(self, slot: Slot) -> float:
        """In exact mode slots are added as they are and divided by their number at the end."""
        return float(not slot.is_padding) if self._parallel.is_exact else slot.weight

    def _loss(self, slot: Slot) -> Tensor:
        with DATA_WAITS.waiting():
            samples = self._task.train_batch(slot.ids)
        batch = self._parallel.to_device(samples)
        with self._parallel.computing():
            return self._task.loss(self._parallel.forward, batch)
