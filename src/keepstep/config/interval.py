"""How often: a number of steps, or a length of time."""

import re
from dataclasses import dataclass

from keepstep.errors import ConfigError

_FORM = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)\Z")
_STEPS = frozenset({"", "step", "steps"})
_UNIT_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Interval:
    """Exactly one of the two is set, and it is greater than zero."""

    steps: int | None = None
    seconds: float | None = None


def parse_interval(value: str | int) -> Interval:
    """Read ``50``, ``"50"``, ``"50steps"``, ``"30s"``, ``"10min"`` or ``"1.5h"``.

    *Raises:* ``ConfigError`` for anything else, and for zero.
    """
    form = None if isinstance(value, bool) else _FORM.match(str(value).strip())
    if form:
        number, unit = form["number"], form["unit"]
        if unit in _STEPS and number.isdecimal() and int(number) > 0:
            return Interval(steps=int(number))
        if unit in _UNIT_SECONDS and float(number) > 0:
            return Interval(seconds=float(number) * _UNIT_SECONDS[unit])
    raise ConfigError(
        f"{value!r} is not an interval: write a number of steps (50 or 50steps) "
        "or a time (30s, 10min, 1h), greater than zero"
    )
