"""What a person or a program is told of drills."""

from collections.abc import Sequence
from typing import Any

from keepstep.drills.record import Record


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


def _where(record: Record) -> list[str]:
    """Where to look, if something failed."""
    return [] if record.is_good else [f"      kept in {record.directory}"]
