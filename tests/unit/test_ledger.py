"""The ledger: line by line, and a torn last line is left out."""

import json
import logging

import pytest

from keepstep.errors import StorageFull
from keepstep.observability.ledger import Ledger, read_ledger


def test_events_come_back_in_order_with_their_context() -> None:
    log = bytearray()
    ledger = Ledger(log.extend, generation=7, rank=3)
    ledger.record("step", step=1, loss=2.5)
    ledger.record("save", step=1)
    events = read_ledger(bytes(log))
    assert [event["event"] for event in events] == ["step", "save"]
    assert events[0]["generation"] == 7
    assert events[0]["rank"] == 3
    assert events[0]["loss"] == 2.5
    assert events[0]["time"] <= events[1]["time"]


def test_each_event_is_one_append_of_one_line() -> None:
    appended: list[bytes] = []
    Ledger(appended.append, generation=1, rank=0).record("note", text="two\nlines")
    assert len(appended) == 1
    assert appended[0].count(b"\n") == 1
    assert json.loads(appended[0])["text"] == "two\nlines"


def test_what_a_dying_writer_tore_is_left_out() -> None:
    log = bytearray()
    ledger = Ledger(log.extend, generation=1, rank=0)
    ledger.record("step", step=1)
    ledger.record("step", step=2)
    for length in range(len(log) - 40, len(log)):
        steps = [event["step"] for event in read_ledger(bytes(log[:length]))]
        assert steps in ([1], [1, 2])
    assert read_ledger(b"") == []
    assert read_ledger(b"[1]\n\x00\n") == []


def test_a_full_disk_loses_events_but_does_not_stop_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: bytes) -> None:
        raise StorageFull("no space")

    ledger = Ledger(fail, generation=1, rank=0)
    with caplog.at_level(logging.WARNING, "keepstep.ledger"):
        for step in range(5):
            ledger.record("step", step=step)
    assert len(caplog.records) == 1, "said once, not at every step"
