"""The page of drills: what was done to each run, what became of it, who judged it how."""

from collections.abc import Iterable, Sequence

from keepstep.drills.record import Record
from keepstep.drills.remains import Remains
from keepstep.drills.results import Injection
from keepstep.drills.verdicts import INVARIANTS, Standing
from keepstep.observability.goodput import Restart, account, restarts
from keepstep.observability.page.bars import divided_bar, recovery_bars
from keepstep.observability.page.curve import Kill, Points, loss_chart, points_of
from keepstep.observability.page.markup import Content, Html, joined, page, table, tag
from keepstep.observability.page.ranks import Mark, rank_chart
from keepstep.observability.page.run_page import figures
from keepstep.observability.page.words import duration_in_words, moment_in_words
from keepstep.observability.timeline import Episode, timeline

_LONGEST_TARGET = 10
"""Characters of a name that fits into a label; a key of an object does not."""

_YES, _NO, _OPEN = (
    tag("span", "\N{CHECK MARK}", class_="yes"),
    tag("span", "\N{BALLOT X}", class_="no"),
    tag("span", "\N{EN DASH}", class_="open"),
)


def drills_page(records: Sequence[Record]) -> str:
    """A document on its own: no network, no script."""
    performed = [record for record in records if record.skipped is None]
    shown_first = next((r for r in performed if not r.is_good), next(iter(performed), None))
    return page(
        "keepstep drills",
        tag("h1", _headline(records)),
        tag("p", _when(records), class_="sub"),
        _figures(records),
        tag("div", [_tile(record) for record in records], class_="tiles"),
        tag("h2", "What was promised"),
        tag("div", _promises(performed), class_="card"),
        tag("h2", "Drill by drill") if performed else "",
        [
            _drill(record, is_open=record is shown_first or not record.is_good)
            for record in performed
        ],
    )


def _headline(records: Sequence[Record]) -> str:
    failed = sum(record.outcome == "FAIL" for record in records)
    performed = sum(record.skipped is None for record in records)
    if not performed:
        return "No drill could be performed"
    if failed:
        return f"{failed} of {performed} drills failed"
    return f"All {performed} drills passed" if performed > 1 else "The drill passed"


def _when(records: Sequence[Record]) -> str:
    if not records:
        return ""
    seeds = sorted({record.seed for record in records})
    return f"{moment_in_words(min(r.began for r in records))}, seed {', '.join(map(str, seeds))}"


def _figures(records: Sequence[Record]) -> Html:
    outcomes = [record.outcome for record in records]
    recoveries = [r.recovery_seconds for r in records if r.recovery_seconds is not None]
    entries = [
        (str(outcomes.count(outcome)), label, kind)
        for outcome, label, kind in (
            ("PASS", "passed", "good"),
            ("FAIL", "failed", "bad"),
            ("SKIP", "skipped", "skip"),
        )
        if outcome in outcomes
    ]
    kills = sum(len(record.injections) for record in records)
    entries.append((str(kills), "faults injected", ""))
    if recoveries:
        ordered = sorted(recoveries)
        entries += [
            (duration_in_words(ordered[len(ordered) // 2]), "median recovery", ""),
            (duration_in_words(ordered[-1]), "longest recovery", ""),
        ]
    entries.append((duration_in_words(sum(record.seconds for record in records)), "in all", ""))
    return figures(*entries)


def _tile(record: Record) -> Html:
    detail = "skipped" if record.skipped is not None else duration_in_words(record.seconds)
    return tag(
        "a",
        tag("span", record.name, class_="id"),
        tag("span", detail),
        class_=f"tile {record.outcome.lower()}",
        href=f"#{record.name}" if record.skipped is None else None,
        title=record.skipped or record.drill.description,
    )


def _promises(records: Sequence[Record]) -> Html:
    standings = [(record.name, record.standings) for record in records]
    rows: list[Sequence[Content]] = []
    for invariant, promise in INVARIANTS.items():
        held = [name for name, found in standings if found[invariant] is Standing.HELD]
        broken = [name for name, found in standings if found[invariant] is Standing.BROKEN]
        sign = _NO if broken else _YES if held else _OPEN
        said = f"broken in {', '.join(broken)}" if broken else _count(len(held))
        rows.append([joined(sign, " ", invariant), tag("div", promise, class_="wide"), said])
    return table(("promise", "", "examined"), rows)


def _count(drills: int) -> str:
    if not drills:
        return "not examined"
    return f"held in {drills} drill{'s' * (drills != 1)}"


def _drill(record: Record, *, is_open: bool) -> Html:
    recovery = record.recovery_seconds
    recovered = "" if recovery is None else f", recovery {duration_in_words(recovery)}"
    summary = tag(
        "summary",
        tag("span", record.outcome, class_=f"word {record.outcome.lower()}"),
        tag("b", record.name),
        tag(
            "span",
            f"{record.drill.family}, {duration_in_words(record.seconds)}{recovered}",
            class_="sub",
        ),
    )
    return tag(
        "details",
        summary,
        tag("p", record.drill.description, class_="what"),
        _objections(record),
        _charts(record),
        tag("h3", "Verdicts"),
        _verdicts(record),
        class_="drill card",
        id=record.name,
        open="" if is_open else None,
    )


def _objections(record: Record) -> Html:
    found = [f"broken off: {record.broken_off}"] if record.broken_off is not None else []
    found += [
        f"{verdict.invariant} {verdict.judge}: {verdict.evidence}"
        for verdict in record.verdicts
        if not verdict.is_good
    ]
    return joined(tag("p", text, class_="objection") for text in found)


def _verdicts(record: Record) -> Html:
    rows = [
        [
            joined(_YES if verdict.is_good else _NO, " ", verdict.invariant),
            verdict.judge,
            tag("div", verdict.evidence, class_="wide"),
        ]
        for verdict in record.verdicts
    ]
    return table(("promise", "judge", "evidence"), rows)


def _charts(record: Record) -> Html:
    if record.remains is None:
        return Html("")
    # A run that began as a copy of the uninterrupted one has that one's ledger too.
    episodes = [e for e in timeline(record.remains.events) if e.ended >= record.began]
    if not episodes:
        return _losses(record, [])
    found = restarts(episodes)
    return joined(
        _losses(record, episodes),
        tag("h3", "Rank by rank"),
        rank_chart(episodes, [_mark(injection) for injection in record.injections]),
        _recovery(found),
        _account(episodes),
    )


def _losses(record: Record, episodes: Sequence[Episode]) -> Html:
    if record.remains is None:
        return Html("")
    lives = _lives(record.remains)
    reference = _lives(record.reference)[-1:] if record.reference else []
    if not any(lives):
        return Html("")
    kills = [kill for injection in record.injections if (kill := _kill(injection, episodes))]
    chart = loss_chart(lives, reference=reference[0] if reference else (), kills=kills)
    return joined(tag("h3", "Loss"), chart)


def _lives(remains: Remains) -> list[Points]:
    """The global loss of each step that each generation ran, exact to the last bit."""
    by_generation: dict[int, dict[int, list[float]]] = {}
    for event in remains.events:
        steps = by_generation.setdefault(event["generation"], {})
        if event["event"] == "samples":
            losses = [float.fromhex(text) for text in event["losses_hex"]]
            steps.setdefault(event["step"], []).extend(losses)
    return [
        points_of({step: sum(losses) / len(losses) for step, losses in steps.items() if losses})
        for _, steps in sorted(by_generation.items())
    ]


def _mark(injection: Injection) -> Mark:
    is_short = len(injection.target) <= _LONGEST_TARGET
    label = f"{injection.kind} {injection.target}" if is_short else injection.kind
    return Mark(injection.time, label, injection.detail or injection.target)


def _kill(injection: Injection, episodes: Iterable[Episode]) -> Kill | None:
    """At the step that was reached by then; damage to what is stored is no event of training."""
    ticks = [tick for episode in episodes for tick in episode.incarnation.ticks]
    before = [tick for tick in ticks if tick[0] <= injection.time]
    if not before or len(injection.target) > _LONGEST_TARGET:
        return None
    return Kill(max(before)[1], f"{injection.kind} {injection.target}")


def _recovery(found: Sequence[Restart]) -> Html:
    if not found:
        return Html("")
    return joined(tag("h3", "Until the run was back where it had been"), recovery_bars(found))


def _account(episodes: Sequence[Episode]) -> Html:
    whole = account(episodes)
    title = f"All process time: goodput {whole.goodput:.0%}"
    bar = divided_bar(whole.by_cause, whole=whole.process_seconds, is_thin=True)
    return joined(tag("h3", title), bar)
