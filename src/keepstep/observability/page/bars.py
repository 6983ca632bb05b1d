"""Bars that are divided among causes."""

from collections.abc import Mapping, Sequence

from keepstep.observability.goodput import Account, Restart
from keepstep.observability.page.causes import CLASSES, legend, swatch
from keepstep.observability.page.markup import Content, Html, joined, table, tag
from keepstep.observability.page.words import duration_in_words
from keepstep.observability.spans import Cause

_LABELED_PART = 0.09
"""A narrower piece has no room for words."""
_VISIBLE_PART = 0.0005


def divided_bar(by_cause: Mapping[Cause, float], *, whole: float, is_thin: bool = False) -> Html:
    """One bar; its pieces say what they are when pointed at."""
    pieces = []
    for cause, seconds in by_cause.items():
        part = seconds / whole if whole > 0 else 0.0
        if part < _VISIBLE_PART:
            continue
        label = "" if is_thin or part < _LABELED_PART else f"{cause.value} {part:.0%}"
        pieces.append(
            tag(
                "i",
                tag("span", label) if label else "",
                class_=CLASSES[cause],
                style=f"width:{100 * part:.3f}%",
                title=f"{cause.value}: {duration_in_words(seconds)}",
            )
        )
    return tag("div", pieces, class_="bar thin" if is_thin else "bar", role="img")


def account_table(whole: Account, *, price: float | None) -> Html:
    """Where the time went, cause by cause."""
    rows: list[Sequence[Content]] = []
    for cause, seconds in [*whole.by_cause.items(), (None, whole.process_seconds)]:
        if cause is not None and not seconds:
            continue
        part = whole.part(cause) if cause is not None else 1.0
        name = joined(swatch(cause), cause.value) if cause is not None else tag("b", "all")
        cost = [] if price is None else [f"{seconds / 3600 * price:,.2f}"]
        gauge = "" if cause is None else _gauge(cause, seconds, whole.process_seconds)
        rows.append([name, gauge, f"{part:.1%}", duration_in_words(seconds), *cost])
    head = ["cause", "", "part", "process time", *([] if price is None else ["cost"])]
    return table(head, rows, numbers=(2, 3, 4))


def _gauge(cause: Cause, seconds: float, whole: float) -> Html:
    return tag("div", divided_bar({cause: seconds}, whole=whole, is_thin=True), class_="gauge")


def recovery_bars(restarts: Sequence[Restart]) -> Html:
    """How long each restart took until the run was where it had been, by what took the time."""
    longest = max(restart.seconds for restart in restarts)
    rows = []
    for restart in restarts:
        seconds = restart.seconds
        share = seconds / longest if longest > 0 else 0.0
        bar = divided_bar(restart.by_cause, whole=seconds, is_thin=True)
        name = tag("span", f"generation {restart.generation}", title=restart.cause)
        room = tag("div", bar, style=f"width:{max(100 * share, 2):.2f}%")
        total = tag("span", duration_in_words(seconds), class_="total")
        rows.append(tag("div", name, tag("div", room, class_="room"), total, class_="recovery"))
    occurring = {cause for restart in restarts for cause, s in restart.by_cause.items() if s > 0}
    return joined(rows, legend(occurring))


def restart_table(restarts: Sequence[Restart], *, price: float | None) -> Html:
    """What each restart has cost."""
    head = ["generation", "cause", "ranks", "reached", "resumed", "lost steps", "samples"]
    head += ["recovery", "done again", *([] if price is None else ["cost"])]
    rows: list[Sequence[Content]] = [
        [
            str(restart.generation),
            tag("div", restart.cause, class_="wide"),
            str(restart.world_size),
            str(restart.reached_step),
            str(restart.resumed_step),
            str(restart.lost_steps),
            str(restart.lost_samples),
            duration_in_words(restart.recovery_seconds),
            duration_in_words(restart.by_cause[Cause.REDO]),
            *([] if price is None else [f"{restart.cost(price):,.2f}"]),
        ]
        for restart in restarts
    ]
    return table(head, rows, numbers=(0, *range(2, 10)))
