"""The ledger: line by line, and a torn last line is left out."""

import json
import logging

import pytest

from keepstep.errors import StorageFull
from keepstep.observability.ledger import Ledger, read_ledger


class MemoryLog:
    """A log of which nothing but the bytes is kept."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.appended: list[bytes] = []

    def append(self, data: bytes) -> None:
        self.data += data
        self.appended.append(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class FullLog(MemoryLog):
    def append(self, data: bytes) -> None:
        raise StorageFull("no space")


def test_events_come_back_in_order_with_their_context() -> None:
    log = MemoryLog()
    ledger = Ledger(log, generation=7, rank=3)
    ledger.record("step", step=1, loss=2.5)
    ledger.record("save", step=1)
    events = read_ledger(bytes(log.data))
    assert [event["event"] for event in events] == ["step", "save"]
    assert events[0]["generation"] == 7
    assert events[0]["rank"] == 3
    assert events[0]["loss"] == 2.5
    assert events[0]["time"] <= events[1]["time"]


def test_each_event_is_one_append_of_one_line() -> None:
    log = MemoryLog()
    Ledger(log, generation=1, rank=0).record("note", text="two\nlines")
    assert len(log.appended) == 1
    assert log.appended[0].count(b"\n") == 1
    assert json.loads(log.appended[0])["text"] == "two\nlines"


def test_what_a_dying_writer_tore_is_left_out() -> None:
    log = MemoryLog()
    ledger = Ledger(log, generation=1, rank=0)
    ledger.record("step", step=1)
    ledger.record("step", step=2)
    for length in range(len(log.data) - 40, len(log.data)):
        steps = [event["step"] for event in read_ledger(bytes(log.data[:length]))]
        assert steps in ([1], [1, 2])
    assert read_ledger(b"") == []
    assert read_ledger(b"[1]\n\x00\n") == []


def test_a_full_disk_does_not_stop_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = Ledger(FullLog(), generation=1, rank=0)
    with caplog.at_level(logging.WARNING, "keepstep.ledger"):
        for step in range(5):
            ledger.record("step", step=step)
    assert len(caplog.records) == 1, "said once, not at every step"
