"""What a person or a program is told of drills."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keepstep.drills.junit import write_junit
from keepstep.drills.page import drills_page
from keepstep.drills.record import Record
from keepstep.observability.goodput import restarts
from keepstep.observability.timeline import timeline

__all__ = ["document", "line", "rows", "summary", "write_html", "write_junit"]


def line(record: Record) -> str:
    """One line for a drill, with another for each objection."""
    if record.skipped is not None:
        return f"{record.outcome}  {record.name}: {record.skipped}"
    recovery = record.recovery_seconds
    recovered = "" if recovery is None else f"  recovery {recovery:.1f} s"
    head = f"{record.outcome}  {record.name}  {record.seconds:.1f} s{recovered}"
    objections = [
        f"      {verdict.invariant} {verdict.judge}: {verdict.evidence}"
        for verdict in record.verdicts
        if not verdict.is_good
    ]
    return "\n".join([head, *objections, *_where(record)])


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """A table: a row for each verdict of each drill."""
    table: list[tuple[str, ...]] = [("drill", "verdict", "promise", "judge", "evidence")]
    for record in records:
        if record.skipped is not None:
            table.append((record.name, record.outcome, "", "", record.skipped))
        table += [
            (
                record.name,
                "PASS" if verdict.is_good else "FAIL",
                verdict.invariant,
                verdict.judge,
                verdict.evidence,
            )
            for verdict in record.verdicts
        ]
    return table


def summary(records: Sequence[Record]) -> str:
    """How many of each."""
    words = [record.outcome for record in records]
    seconds = sum(record.seconds for record in records)
    counts = ", ".join(
        f"{words.count(each)} {label}"
        for each, label in (("PASS", "passed"), ("FAIL", "failed"), ("SKIP", "skipped"))
        if each in words
    )
    return f"{counts} in {seconds:.0f} s"


def document(records: Sequence[Record]) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "drills": [
            {
                "name": record.name,
                "family": record.drill.family,
                "outcome": record.outcome.lower(),
                "reason": record.skipped,
                "seconds": round(record.seconds, 2),
                "recovery_seconds": record.recovery_seconds and round(record.recovery_seconds, 2),
                "recoveries": _recoveries(record),
                "injections": [
                    {
                        "time": injection.time,
                        "kind": injection.kind,
                        "target": injection.target,
                        "detail": injection.detail,
                    }
                    for injection in record.injections
                ],
                "promises": record.standings,
                "verdicts": [
                    {
                        "promise": verdict.invariant,
                        "judge": verdict.judge,
                        "is_good": verdict.is_good,
                        "evidence": verdict.evidence,
                    }
                    for verdict in record.verdicts
                ],
            }
            for record in records
        ]
    }


def write_html(records: Sequence[Record], path: Path) -> None:
    """One page with charts; it needs nothing but a browser."""
    path.write_text(drills_page(records), encoding="ascii")


def _recoveries(record: Record) -> list[dict[str, Any]]:
    """Of each restart, what its time went into."""
    if record.remains is None:
        return []
    episodes = [e for e in timeline(record.remains.events) if e.ended >= record.began]
    return [
        {
            "generation": restart.generation,
            "lost_steps": restart.lost_steps,
            "seconds": round(restart.seconds, 3),
            "seconds_by_cause": {c.value: round(s, 3) for c, s in restart.by_cause.items()},
        }
        for restart in restarts(episodes)
    ]


def _where(record: Record) -> list[str]:
    """Where to look, if something failed."""
    return [] if record.is_good else [f"      kept in {record.directory}"]
