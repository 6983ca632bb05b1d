"""The page of a run: what became of its time."""

import math
import re
from collections.abc import Sequence

from keepstep.observability.goodput import Account, account, restarts, save_costs
from keepstep.observability.page.bars import (
    account_table,
    divided_bar,
    recovery_bars,
    restart_table,
)
from keepstep.observability.page.curve import Kill, Points, loss_chart, points_of
from keepstep.observability.page.markup import Html, joined, page, tag
from keepstep.observability.page.ranks import Mark, rank_chart
from keepstep.observability.page.words import duration_in_words, moment_in_words
from keepstep.observability.timeline import Episode


def run_page(uri: str, episodes: Sequence[Episode], *, price: float | None = None) -> str:
    """A document on its own. ``price``: of a process-hour."""
    if not episodes:
        return page(f"keepstep: {uri}", tag("h1", uri), tag("p", "Nothing has been trained yet."))
    whole = account(episodes)
    return page(
        f"keepstep: {uri}",
        tag("h1", "Where the time went"),
        tag("p", f"{uri}, since {moment_in_words(episodes[0].began)}", class_="sub"),
        _figures(whole, episodes, price),
        tag("div", divided_bar(whole.by_cause, whole=whole.process_seconds), class_="whole"),
        tag("h2", "By cause"),
        tag("div", account_table(whole, price=price), class_="card"),
        tag("h2", "Rank by rank"),
        tag("div", rank_chart(episodes, _marks(episodes)), class_="card"),
        _restarts(episodes, price),
        _losses(episodes),
    )


def figures(*entries: tuple[str, str, str]) -> Html:
    """Large numbers: the number, what it is, and a class."""
    return tag(
        "div",
        [
            tag("div", tag("b", number), tag("span", name), class_=f"figure {kind}".strip())
            for number, name, kind in entries
        ],
        class_="figures",
    )


def losses(episode: Episode) -> Points:
    """As the coordinator recorded them; what is not finite is left out."""
    found: dict[int, float] = {}
    for event in episode.incarnation.events(0, "step"):
        loss = event.get("metrics", {}).get("loss")
        if isinstance(loss, float) and math.isfinite(loss):
            found[event["step"]] = loss
    return points_of(found)


def _figures(whole: Account, episodes: Sequence[Episode], price: float | None) -> Html:
    saves = save_costs(episodes)
    entries = [
        (f"{whole.goodput:.1%}", "goodput", "good"),
        (f"{whole.ettr:.1%}", "ETTR, queueing included", ""),
        (duration_in_words(whole.wall_seconds), "wall time", ""),
        (str(max(e.incarnation.last_step for e in episodes)), "steps", ""),
        (str(len(restarts(episodes))), "restarts", ""),
    ]
    if saves is not None:
        entries.append((duration_in_words(saves.stall_seconds), "stall of a save", ""))
    if price is not None:
        lost = whole.process_seconds - whole.productive_seconds
        entries.append((f"{lost / 3600 * price:,.2f}", "not spent on new steps", "bad"))
    return figures(*entries)


def _marks(episodes: Sequence[Episode]) -> list[Mark]:
    return [
        Mark(
            restart.at,
            "preempted" if restart.was_announced else _in_short(restart.cause),
            restart.cause,
            is_calm=restart.was_announced,
        )
        for restart in restarts(episodes)
    ]


def _in_short(cause: str) -> str:
    """For a label on a chart."""
    rank = re.match(r"rank \d+", cause)
    return f"{rank[0]} lost" if rank else "torn off"


def _restarts(episodes: Sequence[Episode], price: float | None) -> Html:
    found = restarts(episodes)
    if not found:
        return Html("")
    return joined(
        tag("h2", "Restarts"),
        tag(
            "div",
            tag("h3", "Until the run was back where it had been"),
            recovery_bars(found),
            tag("h3", "What each has cost"),
            restart_table(found, price=price),
            class_="card",
        ),
    )


def _losses(episodes: Sequence[Episode]) -> Html:
    lives = [losses(episode) for episode in episodes]
    if not any(lives):
        return Html("")
    kills = [
        Kill(restart.reached_step, f"back to step {restart.resumed_step}")
        for restart in restarts(episodes)
        if restart.lost_steps
    ]
    return joined(tag("h2", "Loss"), tag("div", loss_chart(lives, kills=kills), class_="card"))
