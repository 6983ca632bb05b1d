"""What each process was doing when: spans of time with a cause."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Cause(StrEnum):
    """What time was spent on. The order is that of reports."""

    PRODUCTIVE = "productive"
    """Steps beyond the furthest step reached before."""
    REDO = "redo"
    """Steps up to it: work done again."""
    DATA = "data wait"
    """The training loop waits for samples."""
    STAGE = "stage stall"
    """A save holds training up."""
    EVAL = "eval"
    """``session.phase``: evaluation and the like."""
    RESTORE = "restore"
    """A checkpoint is chosen, read, verified."""
    STARTUP = "start-up"
    """Imports, the process group, building the model; what the first step takes longer."""
    RENDEZVOUS = "rendezvous"
    """Nodes find each other."""
    WAITING = "waiting for nodes"
    """Too few nodes, or none: the job is queued."""
    DOWN = "down"
    """From the last sign of life until workers are started again."""
    UNKNOWN = "unknown"
    """The ledger does not tell."""


class Background(StrEnum):
    """What goes on while training does."""

    WRITE = "write"
    """A rank streams its shard."""
    COMMIT = "commit"
    """From a rank's last byte until it knows the outcome."""
    CUT_SHORT = "cut short"
    """A save of which no end is on record."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one process's time. Unix seconds."""

    cause: Cause | Background
    began: float
    ended: float
    note: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def overlay(base: Sequence[Span], over: Iterable[Span]) -> list[Span]:
    """``base``, replaced by ``over`` where that is; nothing is added outside of ``base``.

    Args:
        base: Ascending, without overlap; so is the result.
        over: In any order; of two that overlap the earlier one goes first.
    """
    result = list(base)
    tops: list[Span] = []
    end = float("-inf")
    for span in sorted(over, key=lambda span: span.began):
        start = max(span.began, end)
        if span.ended > start:
            tops.append(replace(span, began=start))
            end = span.ended
    return _merged(result, tops) if tops else result


def clipped(spans: Iterable[Span], began: float, ended: float) -> list[Span]:
    """The parts of them that lie within."""
    parts = (
        replace(span, began=max(span.began, began), ended=min(span.ended, ended)) for span in spans
    )
    return [part for part in parts if part.ended > part.began]


def filled(
    spans: Sequence[Span], cause: Cause, seconds: float, *, among: frozenset[Cause]
) -> list[Span]:
    """The first ``seconds`` of those spans that are ``among`` some causes, given another cause."""
    result: list[Span] = []
    for span in spans:
        taken = min(seconds, span.seconds) if span.cause in among else 0.0
        seconds -= taken
        middle = span.began + taken
        if taken > 0:
            result.append(Span(cause, span.began, middle))
        if middle < span.ended:
            result.append(replace(span, began=middle))
    return result


def _merged(base: Sequence[Span], tops: Sequence[Span]) -> list[Span]:
    result: list[Span] = []
    number = 0
    for span in base:
        at = span.began
        while number < len(tops) and tops[number].ended <= at:
            number += 1
        each = number
        while each < len(tops) and tops[each].began < span.ended:
            top = tops[each]
            if top.began > at:
                result.append(replace(span, began=at, ended=top.began))
            start = max(at, top.began)
            at = min(top.ended, span.ended)
            result.append(replace(top, began=start, ended=at))
            each += 1
        if at < span.ended:
            result.append(replace(span, began=at))
    return result
