"""How often: a number of steps, a length of time, or as often as is best."""

import re
from dataclasses import dataclass

from keepstep.errors import ConfigError

_FORM = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)\Z")
_AUTO = "auto"
_STEPS = frozenset({"", "step", "steps"})
_UNIT_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Interval:
    """At most one of the two is set, and it is greater than zero; neither means ``auto``."""

    steps: int | None = None
    seconds: float | None = None


def parse_interval(value: str | int) -> Interval:
    """Read ``50``, ``"50"``, ``"50steps"``, ``"30s"``, ``"10min"``, ``"1.5h"`` or ``"auto"``.

    *Raises:* ``ConfigError`` for anything else, and for zero.
    """
    if value == _AUTO:
        return Interval()
    form = None if isinstance(value, bool) else _FORM.match(str(value).strip())
    if form:
        number, unit = form["number"], form["unit"]
        if unit in _STEPS and number.isdecimal() and int(number) > 0:
            return Interval(steps=int(number))
        if unit in _UNIT_SECONDS and float(number) > 0:
            return Interval(seconds=float(number) * _UNIT_SECONDS[unit])
    raise ConfigError(
        f"{value!r} is not an interval: write a number of steps (50 or 50steps) "
        "or a time (30s, 10min, 1h), greater than zero, or auto"
    )
