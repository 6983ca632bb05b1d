"""What a session was opened with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from keepstep.checkpoint.save_engine import SaveMode
from keepstep.config import Interval, KeepPolicy
from keepstep.session.saves import WhenFailing

WhenBusy = Literal["wait", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What :func:`keepstep.open` was given; described there."""

    every: Interval
    keep: KeepPolicy
    mode: SaveMode
    when_busy: WhenBusy
    resume: str | int
    init_from: str | None
    read_once: bool | None
    seed: int
    mathematics: Mapping[str, Any] | None
    accept_change: bool
    config_digest: str | None
    parallel: Mapping[str, Any]
    samples_per_epoch: int | None
    timeout_seconds: float
    step_timeout_seconds: float
    deadline_seconds: float
    failed_saves_allowed: int
    when_failing: WhenFailing
    longest_pause_seconds: float
    single_writer: bool
    owns_preemption: bool
