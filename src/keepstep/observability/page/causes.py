"""How causes look: a class of the style sheet each, and legends."""

from collections.abc import Iterable

from keepstep.observability.page.markup import Html, tag
from keepstep.observability.spans import Background, Cause

CLASSES: dict[Cause | Background, str] = {
    Cause.PRODUCTIVE: "productive",
    Cause.REDO: "redo",
    Cause.DATA: "data",
    Cause.STAGE: "stage",
    Cause.EVAL: "eval",
    Cause.RESTORE: "restore",
    Cause.STARTUP: "startup",
    Cause.RENDEZVOUS: "rendezvous",
    Cause.WAITING: "waiting",
    Cause.DOWN: "down",
    Cause.UNKNOWN: "unknown",
    Background.WRITE: "write",
    Background.COMMIT: "commit",
    Background.CUT_SHORT: "cut",
}


def swatch(cause: Cause | Background) -> Html:
    """A small square in its color."""
    return tag("i", class_=f"swatch {CLASSES[cause]}")


def legend(causes: Iterable[Cause | Background]) -> Html:
    """Of those that occur, in their order."""
    shown = set(causes)
    entries = [tag("span", swatch(cause), cause.value) for cause in CLASSES if cause in shown]
    return tag("div", entries, class_="legend")
