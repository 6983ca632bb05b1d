"""What a person or a program is told of drills."""

from collections.abc import Sequence
from typing import Any

from keepstep.drills.perform import Outcome

_PASS, _FAIL, _SKIP = "PASS", "FAIL", "SKIP"


def word(outcome: Outcome) -> str:
    """``PASS``, ``FAIL`` or ``SKIP``."""
    if outcome.skipped is not None:
        return _SKIP
    return _PASS if outcome.is_good else _FAIL


def line(outcome: Outcome) -> str:
    """One line for a drill, with another for each objection."""
    if outcome.skipped is not None:
        return f"{_SKIP}  {outcome.drill}: {outcome.skipped}"
    recovery = outcome.recovery_seconds
    recovered = "" if recovery is None else f"  recovery {recovery:.1f} s"
    head = f"{word(outcome)}  {outcome.drill}  {outcome.seconds:.1f} s{recovered}"
    objections = [
        f"      {verdict.invariant} {verdict.judge}: {verdict.evidence}"
        for verdict in outcome.verdicts
        if not verdict.is_good
    ]
    return "\n".join([head, *objections, *_where(outcome)])


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """A table: a row for each verdict of each drill."""
    table: list[tuple[str, ...]] = [("drill", "verdict", "promise", "judge", "evidence")]
    for outcome in outcomes:
        if outcome.skipped is not None:
            table.append((outcome.drill, _SKIP, "", "", outcome.skipped))
        table += [
            (
                outcome.drill,
                _PASS if verdict.is_good else _FAIL,
                verdict.invariant,
                verdict.judge,
                verdict.evidence,
            )
            for verdict in outcome.verdicts
        ]
    return table


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many of each."""
    words = [word(outcome) for outcome in outcomes]
    seconds = sum(outcome.seconds for outcome in outcomes)
    counts = ", ".join(
        f"{words.count(each)} {label}"
        for each, label in ((_PASS, "passed"), (_FAIL, "failed"), (_SKIP, "skipped"))
        if each in words
    )
    return f"{counts} in {seconds:.0f} s"


def document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "drills": [
            {
                "name": outcome.drill,
                "outcome": word(outcome).lower(),
                "reason": outcome.skipped,
                "seconds": round(outcome.seconds, 2),
                "recovery_seconds": outcome.recovery_seconds and round(outcome.recovery_seconds, 2),
                "verdicts": [
                    {
                        "promise": verdict.invariant,
                        "judge": verdict.judge,
                        "is_good": verdict.is_good,
                        "evidence": verdict.evidence,
                    }
                    for verdict in outcome.verdicts
                ],
            }
            for outcome in outcomes
        ]
    }


def _where(outcome: Outcome) -> list[str]:
    """Where to look, if something failed."""
    return [] if outcome.is_good else [f"      kept in {outcome.directory}"]
