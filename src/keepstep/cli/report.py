"""``keepstep report``: what became of a run's time, from its ledgers alone."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from keepstep.cli.output import (
    NOTHING,
    Flag,
    UsageError,
    check_file,
    print_json,
    print_table,
)
from keepstep.cli.records import open_run
from keepstep.commit.ledgers import read_ledgers
from keepstep.observability.account_document import account_document
from keepstep.observability.goodput import Account, Restart, account, restarts
from keepstep.observability.page.words import duration_in_words
from keepstep.observability.spans import Cause
from keepstep.observability.timeline import Episode, timeline
from keepstep.storage.opening import open_storage

Price = Annotated[float | None, Parameter(show_default=False)]
File = Annotated[Path | None, Parameter(show_default=False)]


def report(uri: str, /, *, price: Price = None, html: File = None, json: Flag = False) -> None:
    """Account for the time of a run: by cause, and for each restart.

    Parameters
    ----------
    uri
        Where the run lives.
    price
        Of an hour of one process; everything lost is then also given in money.
    html
        Write a page with charts to this file, too.
    json
        Print JSON.
    """
    if price is not None and price < 0:
        raise UsageError(f"--price {price:g}: a price cannot be negative")
    check_file("--html", html)
    storage = open_storage(uri)
    open_run(storage)
    episodes = timeline(read_ledgers(storage))
    if html is not None:
        from keepstep.observability.page.run_page import run_page

        html.write_text(run_page(storage.uri, episodes, price=price), encoding="ascii")
    if json:
        print_json({"uri": storage.uri, **account_document(episodes, price=price)})
    elif episodes:
        _print_account(account(episodes), episodes, price)
        _print_restarts(restarts(episodes), price)
    else:
        print(f"no ledger in {storage.uri} tells of a start yet", file=sys.stderr)


def _print_account(whole: Account, episodes: list[Episode], price: float | None) -> None:
    steps = max(episode.incarnation.last_step for episode in episodes)
    print(
        f"goodput {whole.goodput:.1%}   ETTR {whole.ettr:.1%}   step {steps}, "
        f"{len(episodes)} generations, {duration_in_words(whole.wall_seconds)}\n"
    )
    rows = [("cause", "process time", "part", "", "cost")]
    for cause, seconds in whole.by_cause.items():
        part = whole.part(cause)
        cost = "" if price is None else f"{seconds / 3600 * price:.2f}"
        rows.append((cause, duration_in_words(seconds), f"{part:.1%}", _bar(part), cost))
    total = "" if price is None else f"{whole.process_seconds / 3600 * price:.2f}"
    rows.append(("all", duration_in_words(whole.process_seconds), "100.0%", "", total))
    print_table([row if price is not None else row[:-1] for row in rows], right=(1, 2, 4))


def _print_restarts(found: list[Restart], price: float | None) -> None:
    if not found:
        print("\nno restarts")
        return
    head = ("generation", "lost steps", "samples", "recovery", "redo", "cost", "cause")
    rows: list[tuple[str, ...]] = [head]
    rows += [
        (
            str(restart.generation),
            str(restart.lost_steps),
            str(restart.lost_samples),
            duration_in_words(restart.recovery_seconds),
            duration_in_words(restart.by_cause[Cause.REDO]),
            NOTHING if price is None else f"{restart.cost(price):.2f}",
            restart.cause,
        )
        for restart in found
    ]
    print()
    print_table([row if price is not None else (*row[:5], row[6]) for row in rows], right=range(5))


def _bar(part: float) -> str:
    return "#" * round(30 * part)
