"""What a person sees of a training run: a line now and then, and a summary."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from keepstep.session.session import Session
from keepstep.train.trainer import Update

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """What this process saw of the run; a loss is ``None`` if none was measured."""

    step: int
    first_loss: float | None
    last_loss: float | None
    val_loss: float | None
    seconds: float

    def __str__(self) -> str:
        return (
            f"step={self.step} loss={_shown(self.first_loss)}->{_shown(self.last_loss)} "
            f"val_loss={_shown(self.val_loss)} seconds={self.seconds:.1f}"
        )


class Report:
    """Collects what was measured and writes it to the log.

    *Ranks:* local; which ranks' logs are shown is up to the launcher.
    """

    def __init__(self, session: Session, *, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self._session = session
        self._started = self._line_time = time.monotonic()
        self._line_step = session.step
        self._losses: list[float] = []
        self._val_loss: float | None = None

    @property
    def is_first(self) -> bool:
        """Whether no loss was reported yet."""
        return not self._losses

    def after_step(self, metrics: Mapping[str, float], update: Update, *, epoch: int) -> None:
        """Log a line if something was measured in the step that the session has just counted."""
        if not metrics:
            return
        now, step = time.monotonic(), self._session.step
        speed = (step - self._line_step) * self.tokens_per_step / (now - self._line_time)
        measured = " ".join(f"{name}={value:.4f}" for name, value in metrics.items())
        logger.info(
            "step=%d epoch=%d %s lr=%.2e grad_norm=%.3f tokens_per_second=%.0f committed=%s",
            step,
            epoch,
            measured,
            update.learning_rate,
            update.grad_norm.item(),
            speed,
            committed_step(self._session),
        )
        self._line_time, self._line_step = now, step
        self._losses += [metrics["loss"]] if "loss" in metrics else []
        self._val_loss = metrics.get("val_loss", self._val_loss)

    def summary(self) -> Summary:
        """The run so far."""
        first, last = (self._losses[0], self._losses[-1]) if self._losses else (None, None)
        seconds = time.monotonic() - self._started
        return Summary(self._session.step, first, last, self._val_loss, seconds)


def committed_step(session: Session) -> str:
    """The newest committed step as text."""
    return str(session.latest.step) if session.latest else "none"


def _shown(loss: float | None) -> str:
    return "none" if loss is None else f"{loss:.4f}"
