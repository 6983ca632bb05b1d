"""When to stop because nothing gets better any more."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from keepstep.errors import ConfigError


class EarlyStopping:
    """Watches one metric; track it, so that its patience survives restarts.

    ::

        early = keepstep.EarlyStopping("val_loss:min", patience=5)
        session.track(model=model, optim=optim, early=early)
        ...
        if early.observe(val_loss, step=session.step):
            session.load_best("val_loss:min", only=["model"])
            break

    *Ranks:* the same values on all ranks.

    Args:
        metric: A name and where to: ``"val_loss:min"``, ``"accuracy:max"``.
        patience: Observations in a row without improvement that are put up with.
        least: By how much a value must be better to count.
    """

    def __init__(self, metric: str, *, patience: int, least: float = 0.0) -> None:
        self.metric, self.goal = parse_metric(metric)
        if patience < 1 or least < 0:
            raise ConfigError(f"patience={patience}, least={least}: 1 or more, and 0 or more")
        self._patience = patience
        self._least = least
        self.best: float | None = None
        self.best_step: int | None = None
        self._worse = 0

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self._worse >= self._patience

    def observe(self, value: float, *, step: int) -> bool:
        """Take note of a value; whether patience has run out. NaN is never better."""
        margin = -self._least if self.goal == "min" else self._least
        better = (
            self.best is None
            or (value < self.best + margin if self.goal == "min" else value > self.best + margin)
        ) and not math.isnan(value)
        if better:
            self.best, self.best_step, self._worse = value, step, 0
        else:
            self._worse += 1
        return self.is_over

    def state_dict(self) -> dict[str, Any]:
        """What has been seen so far."""
        return {"best": self.best, "best_step": self.best_step, "worse": self._worse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.best, self.best_step = state["best"], state["best_step"]
        self._worse = state["worse"]


def parse_metric(text: str) -> tuple[str, Literal["min", "max"]]:
    """``name:min`` or ``name:max``. *Raises:* ``ConfigError``."""
    name, _, goal = text.rpartition(":")
    if name and goal == "min":
        return name, "min"
    if name and goal == "max":
        return name, "max"
    raise ConfigError(f"{text!r} is no metric and goal: write val_loss:min or accuracy:max")
