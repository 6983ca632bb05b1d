"""The page of drills, its JUnit report, and what is shown meanwhile."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from ledger_events import Event, event, in_order, life

from keepstep.drills import report
from keepstep.drills.progress import Bar, Lines, Silent, display
from keepstep.drills.record import Record
from keepstep.drills.remains import Remains
from keepstep.drills.results import Injection
from keepstep.drills.scenario import Drill
from keepstep.drills.verdicts import Verdict
from keepstep.observability.page.ranks import legible
from keepstep.observability.page.run_page import run_page
from keepstep.observability.page.words import duration_in_words, time_label, time_ticks
from keepstep.observability.spans import Cause, Span
from keepstep.observability.timeline import timeline

_VOID = {"meta", "link", "!doctype"}


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = page_of(records())
    assert "<script" not in page
    assert "@import" not in page
    assert re.findall(r'(?:src|href)="(?!#|data:,)[^"]*"', page) == []
    assert "url(" not in page


def test_every_element_is_closed() -> None:
    for page in (page_of(records()), run_page("s3://b/run", timeline(killed()))):
        checker = Nesting()
        checker.feed(page)
        assert checker.open == []


def test_a_drill_shows_its_kill_its_timeline_and_its_verdicts() -> None:
    page = page_of(records()[:1])
    assert "The drill passed" in page
    assert page.count("kill rank 1") >= 2, "on the loss and on the timeline"
    for cause in ("productive", "redo", "start-up", "restore", "down", "uninterrupted run"):
        assert cause in page
    assert "same_bits" in page


def test_what_failed_is_said_first_and_open() -> None:
    page = page_of(records())
    assert "1 of 2 drills failed" in page
    failing = page.index('id="kill-b"')
    assert "open" in page[page.rindex("<details", 0, failing + 20) : failing + 40]
    assert "embed.weight differs" in page


def test_text_from_a_run_is_no_markup() -> None:
    bad = replace(records()[1], broken_off="<b onclick='x'>&")
    assert "<b onclick" not in page_of([bad])


def test_a_drill_that_left_nothing_has_a_page_all_the_same() -> None:
    broken = Record(drill=drill("kill-c"), broken_off="the uninterrupted run failed")
    skipped = Record(drill=drill("net-d"), skipped="needs root")
    assert "broken off" in page_of([broken, skipped])
    assert "No drill could be performed" in page_of([skipped])
    assert page_of([])


def test_junit_counts_and_names_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    skipped = Record(drill=drill("net-d"), skipped="needs root\x00")
    report.write_junit([*records(), skipped], path)
    suites = ET.parse(path).getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("skipped")) == ("3", "1", "1")
    cases = {case.get("name"): case for case in suites.iter("testcase")}
    (failure,) = cases["kill-b"]
    assert failure.tag == "failure"
    assert failure.get("message") == "I5 same_bits: embed.weight differs"
    assert cases["net-d"][0].get("message") == "needs root?"
    assert len(cases["kill-a"]) == 0


def test_the_document_splits_each_recovery() -> None:
    (described, _) = report.document(records())["drills"]
    (recovery,) = described["recoveries"]
    assert recovery["lost_steps"] == 4
    assert recovery["seconds_by_cause"]["restore"] == 1.0
    assert described["injections"][0]["target"] == "rank 1"


def test_without_a_terminal_there_is_a_line_for_each_drill(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with display(2) as shown:
        assert isinstance(shown, Lines)
        for record in records():
            shown.began(record.drill)
            shown.ended(record)
    assert capsys.readouterr().out.startswith("PASS  kill-a  21.0 s")
    with display(2, is_quiet=True) as shown:
        assert isinstance(shown, Silent)
        assert not isinstance(shown, Lines)


def test_on_a_terminal_a_bar_says_how_far_it_has_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with display(2) as shown:
        assert isinstance(shown, Bar)
        for record in records():
            shown.began(record.drill)
            shown.ended(record)
    shown_lines = capsys.readouterr().out
    assert "kill-a  21.0 s" in shown_lines
    assert "2/2" in shown_lines


def test_a_run_page_says_what_the_rest_has_cost() -> None:
    page = run_page("runs/a", timeline(killed()), price=3600.0)
    assert "goodput" in page
    assert "rank 1 lost" in page
    assert "not spent on new steps" in page
    assert "Nothing has been trained" in run_page("runs/a", [])


def test_a_long_run_is_drawn_with_few_spans() -> None:
    causes = (Cause.PRODUCTIVE, Cause.STAGE)
    spans = [
        Span(causes[n % 2], n + 0.2 * (n % 2), n + 1 + 0.2 * ((n + 1) % 2)) for n in range(20_000)
    ]
    drawn = legible(spans, most=500)
    assert len(drawn) <= 600
    assert {span.cause for span in drawn} == {Cause.PRODUCTIVE}
    assert (drawn[0].began, drawn[-1].ended) == (spans[0].began, spans[-1].ended)


def test_words_for_durations_and_axes() -> None:
    said = [duration_in_words(s) for s in (0.0, 0.047, 2.34, 59.6, 200, 18420, 273600)]
    assert said == ["0.0 s", "47 ms", "2.3 s", "1 min 00 s", "3 min 20 s", "5 h 07 min", "3 d 4 h"]
    assert time_ticks(110.0)[:3] == [0, 20, 40]
    assert time_ticks(2 * 86400.0)[1] == 21600
    assert [time_label(s, 21600) for s in (0, 21600)] == ["0 h", "6 h"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_opens_the_page_without_a_complaint(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    report.write_html(records(), path)
    done = subprocess.run(
        [
            *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu"),
            *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--dump-dom", f"file://{path}"),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<details") == 2


class Nesting(HTMLParser):
    """Elements that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def records() -> list[Record]:
    """One that passed, one that failed."""
    good = Record(
        drill=drill("kill-a"),
        began=90.0,
        seconds=21.0,
        injections=(Injection(time=115.5, kind="kill", target="rank 1", detail="step 10"),),
        remains=remains(killed()),
        reference=remains(sampled(life(1, began=10.0, last_step=20))),
        verdicts=(Verdict("same_bits", "I5", is_good=True, evidence="240 losses equal"),),
    )
    bad = Verdict("same_bits", "I5", is_good=False, evidence="embed.weight differs")
    return [good, replace(good, drill=drill("kill-b"), verdicts=(bad,), directory="/tmp/kill-b")]


def killed() -> list[Event]:
    first = life(1, began=100.0, last_step=10)
    second = life(2, began=117.0, first_step=7, last_step=20, cause="rank 1 died")
    return sampled([*first, *second])


def sampled(events: list[Event]) -> list[Event]:
    """With the losses that drills have recorded."""
    losses = [
        event(
            "samples",
            each["generation"],
            each["rank"],
            each["time"],
            step=each["step"],
            ids=[each["step"]],
            losses_hex=[(4.0 / each["step"]).hex()],
        )
        for each in events
        if each["event"] == "step"
    ]
    return list(in_order(losses, events))


def remains(events: list[Event]) -> Remains:
    return Remains(events=tuple(events), claims=(), checkpoints=())


def drill(name: str, **fields: Any) -> Drill:
    return Drill(
        name=name,
        family="D1",
        description="Rank 1 dies.",
        strategy="ddp",
        acts=(),
        judges=("same_bits",),
        **fields,
    )


def page_of(records: list[Record]) -> str:
    from keepstep.drills.page import drills_page

    return drills_page(records)
