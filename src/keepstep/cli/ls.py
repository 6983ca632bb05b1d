"""``keepstep ls``: the checkpoints of a run."""

import sys

from keepstep.cli.output import (
    NOTHING,
    Flag,
    age_in_words,
    bytes_in_words,
    pairs_in_words,
    print_json,
    print_table,
)
from keepstep.cli.records import Record, open_run, read_record
from keepstep.commit.catalog import Status
from keepstep.commit.pins import pinned_in_words, read_pins
from keepstep.storage.opening import open_storage

_SHOWN = {Status.COMMITTED, Status.QUARANTINED}
_HEADER = ("step", "age", "bytes", "world", "generation", "metrics", "status")
_RIGHT = range(5)


def ls(uri: str, /, *, all: Flag = False, json: Flag = False) -> None:
    """List the checkpoints of a run, newest last.

    Parameters
    ----------
    uri
        Where the run lives: a path or file:///path.
    all
        Also show superseded checkpoints and attempts that were never committed.
    json
        Print JSON.
    """
    storage = open_storage(uri)
    catalog = open_run(storage)
    entries = catalog.entries()
    shown = [entry for entry in entries if all or entry.status in _SHOWN]
    pins = read_pins(storage)
    records = [read_record(catalog, entry, pins) for entry in shown]
    if json:
        print_json({"uri": storage.uri, "checkpoints": records})
    elif records:
        _print_records(records, with_attempt=all)
    else:
        hidden = f" ({len(entries)} with --all)" if entries else ""
        print(f"no checkpoints in {storage.uri} yet{hidden}", file=sys.stderr)


def _print_records(records: list[Record], *, with_attempt: bool) -> None:
    """``with_attempt``: steps may occur more than once, and the attempt tells them apart."""
    rows = [_HEADER, *map(_row, records)]
    if with_attempt:
        attempts = ["attempt", *(record["attempt"] for record in records)]
        rows = [
            (*row[:-2], attempt, *row[-2:]) for row, attempt in zip(rows, attempts, strict=True)
        ]
    print_table(rows, right=_RIGHT)


def _row(record: Record) -> tuple[str, ...]:
    age, size_bytes, world_size = record["age_seconds"], record["size_bytes"], record["world_size"]
    return (
        str(record["step"]),
        NOTHING if age is None else age_in_words(age),
        NOTHING if size_bytes is None else bytes_in_words(size_bytes),
        NOTHING if world_size is None else str(world_size),
        str(record["generation"]),
        pairs_in_words(record["metrics"] or {}),
        _status_in_words(record),
    )


def _status_in_words(record: Record) -> str:
    pin, note = record["pin"], record["note"]
    pinned = f", {pinned_in_words(pin['name'])}" if pin else ""
    return f"{record['status']}{pinned}" + (f": {note}" if note else "")
