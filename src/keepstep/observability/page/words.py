"""Quantities for people."""

import math
from datetime import UTC, datetime


def duration_in_words(seconds: float) -> str:
    """Two units at most: ``47 ms``, ``0.4 s``, ``12 s``, ``3 min 20 s``, ``5 h 07 min``."""
    if 0 < seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 1:
        return f"{minutes} min {rest:02} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes:02} min"


def moment_in_words(moment: float) -> str:
    """A moment in Unix seconds, in UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ticks(end: float, *, most: int = 8) -> list[float]:
    """Round numbers from zero up to ``end``, for an axis."""
    if end <= 0:
        return [0.0]
    step = _round_step(end / most)
    return [step * number for number in range(math.floor(end / step + 1e-9) + 1)]


def time_ticks(end: float, *, most: int = 8) -> list[float]:
    """The same in seconds, at whole minutes, hours and days where there are some."""
    steps = (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    if end / most <= 30:
        return ticks(end, most=most)
    step: float = next((step for step in steps if end / step <= most), 0)
    step = step or 86400 * _round_step(end / 86400 / most)
    return [step * number for number in range(math.floor(end / step + 1e-9) + 1)]


def time_label(seconds: float, step: float) -> str:
    """Short, for an axis whose ticks are ``step`` apart."""
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    for unit_seconds, unit in units:
        if step % unit_seconds == 0:
            return f"{seconds / unit_seconds:g} {unit}"
    return f"{seconds:g} s"


def _round_step(least: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
