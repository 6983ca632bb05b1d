"""What commands print: tables and quantities for people, JSON for programs."""

import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from keepstep.errors import ExitCode, KeepstepError

NOTHING = "-"
"""Stands where there is no value."""

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
"""An option that is there or not."""


class UsageError(KeepstepError):
    """A command was given arguments that do not go together."""

    exit_code = ExitCode.USAGE


def check_file(option: str, path: Path | None) -> None:
    """*Raises:* ``UsageError`` if no file can be written there: better now than at the end."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise UsageError(
            f"{option} {path}: no file can be written there; name one in a directory that is there"
        )


def print_json(value: object) -> None:
    """One JSON document."""
    print(json.dumps(value, indent=1))


def print_table(
    rows: Sequence[Sequence[str]], *, right: Collection[int] = (), indent: str = ""
) -> None:
    """Aligned columns, two spaces apart; those numbered in ``right`` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print((indent + "  ".join(cells)).rstrip())


def report_failure(message: str, code: ExitCode, kind: str, *, as_json: bool) -> None:
    """Say on stderr what went wrong: a line for each thing, or one JSON document."""
    if as_json:
        report = {"error": {"kind": kind, "message": message, "exit_code": int(code)}}
        print(json.dumps(report), file=sys.stderr)
    else:
        for line in message.splitlines():
            print(f"keepstep: error: {line}", file=sys.stderr)


def bytes_in_words(size_bytes: int) -> str:
    """Decimal units, three digits: ``512 B``, ``1.23 MB``."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value, units = size_bytes / 1000, ["PB", "TB", "GB", "MB", "kB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop()
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {units[-1]}"


def age_seconds(created: str) -> float:
    """Seconds since an ISO 8601 moment; never negative, as clocks of machines differ."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds())


def age_in_words(seconds: float) -> str:
    """The largest unit that fits: ``45s``, ``12min``, ``3h``, ``5d``."""
    for unit, unit_seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit_seconds:
            return f"{seconds / unit_seconds:.0f}{unit}"
    return f"{seconds:.0f}s"


def pairs_in_words(values: Mapping[str, object]) -> str:
    """``name=value`` in the order given; floats to four significant digits."""
    words = (
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )
    return " ".join(words) or NOTHING
