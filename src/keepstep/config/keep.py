"""Which checkpoints to keep: rules that add up."""

import re
from dataclasses import dataclass
from typing import Literal

from keepstep.config.interval import parse_interval
from keepstep.errors import ConfigError

_ALL = "all"
_NAME = re.compile(r"[^\s,:=]+\Z")
_EXAMPLE = "last=3,every=1h,best=val_loss:min:2,tag=release, or all"


@dataclass(frozen=True, slots=True)
class Last:
    """The newest ones."""

    count: int

    def __str__(self) -> str:
        return f"last={self.count}"


@dataclass(frozen=True, slots=True)
class EverySteps:
    """The first of each so many steps."""

    steps: int

    def __str__(self) -> str:
        return f"every={self.steps}steps"


@dataclass(frozen=True, slots=True)
class EverySeconds:
    """The first of each so much time, by the clock of whoever saved."""

    seconds: float

    def __str__(self) -> str:
        return f"every={_time_in_words(self.seconds)}"


@dataclass(frozen=True, slots=True)
class Best:
    """Those with the smallest or largest values of a metric; of equal values the earliest."""

    metric: str
    goal: Literal["min", "max"]
    count: int

    def __str__(self) -> str:
        return f"best={self.metric}:{self.goal}:{self.count}"


@dataclass(frozen=True, slots=True)
class Tagged:
    """Those that were saved with a tag."""

    tag: str

    def __str__(self) -> str:
        return f"tag={self.tag}"


Rule = Last | EverySteps | EverySeconds | Best | Tagged


@dataclass(frozen=True, slots=True)
class KeepPolicy:
    """What one of its rules keeps is kept."""

    rules: tuple[Rule, ...] = ()
    """Without any, everything is kept."""

    @property
    def keeps_all(self) -> bool:
        return not self.rules

    def __str__(self) -> str:
        return ",".join(map(str, self.rules)) or _ALL


def parse_keep(text: str) -> KeepPolicy:
    """Read ``"last=3,every=1h,every=1000steps,best=val_loss:min:2,tag=release"`` or ``"all"``.

    *Raises:* ``ConfigError`` naming the rule that cannot be read.
    """
    words = [word.strip() for word in text.split(",")]
    if words == [_ALL]:
        return KeepPolicy()
    if _ALL in words:
        raise ConfigError(f"keep {text!r}: all keeps everything; leave out the other rules")
    return KeepPolicy(tuple(dict.fromkeys(_parse_rule(word) for word in words)))


def _parse_rule(word: str) -> Rule:
    name, _, value = word.partition("=")
    match name:
        case "last" if (count := _count(value)) is not None:
            return Last(count)
        case "every":
            return _parse_every(word, value)
        case "best" if (best := _parse_best(value)) is not None:
            return best
        case "tag" if _NAME.match(value):
            return Tagged(value)
    raise _unreadable(word)


def _parse_every(word: str, value: str) -> Rule:
    try:
        interval = parse_interval(value)
    except ConfigError as error:
        raise _unreadable(word) from error
    if interval.steps is not None:
        return EverySteps(interval.steps)
    if interval.seconds is not None:
        return EverySeconds(interval.seconds)
    raise _unreadable(word)  # auto says how often to save, not what to keep


def _parse_best(value: str) -> Best | None:
    metric, _, rest = value.partition(":")
    goal, _, count = rest.partition(":")
    number = _count(count or "1")
    if not _NAME.match(metric) or number is None or goal not in ("min", "max"):
        return None
    return Best(metric, "min" if goal == "min" else "max", number)


def _count(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _unreadable(word: str) -> ConfigError:
    return ConfigError(f"{word!r} is not a rule of what to keep: write {_EXAMPLE}")


def _time_in_words(seconds: float) -> str:
    for unit, unit_seconds in (("h", 3600), ("min", 60)):
        if seconds % unit_seconds == 0:
            return f"{seconds / unit_seconds:.0f}{unit}"
    return f"{seconds:g}s"
