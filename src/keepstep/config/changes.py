"""What differs between the mathematics of a checkpoint and that of this job."""

import json
from collections.abc import Mapping, Sequence

_ABSENT = "(absent)"


def explain_change(saved: Mapping[str, object], current: Mapping[str, object]) -> str | None:
    """A plain table (field, checkpoint, now) of what differs; ``None`` if nothing does.

    Values are compared as JSON, so that a tuple equals the list that it becomes in a manifest.
    """
    rows = [
        (field, before, now)
        for field in sorted(saved.keys() | current.keys())
        if (before := _as_json(saved, field)) != (now := _as_json(current, field))
    ]
    return _table([("field", "checkpoint", "now"), *rows]) if rows else None


def _as_json(values: Mapping[str, object], field: str) -> str:
    return json.dumps(values[field], sort_keys=True) if field in values else _ABSENT


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
