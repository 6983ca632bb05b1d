"""What a rank writes down of its own time."""

import json
import time
from pathlib import Path

import pytest
from test_ledger import MemoryLog

import keepstep
from keepstep.commit.ledgers import read_ledgers
from keepstep.launch.worker import note_rendezvous
from keepstep.observability.ledger import Ledger, read_ledger
from keepstep.observability.startup import PROCESS, STARTUP, StartUp, process_started
from keepstep.observability.waits import DATA_WAITS, Waits
from keepstep.observability.work import WorkRecord
from keepstep.storage.local import LocalStorage


class Clock:
    """Both clocks, which pass when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for name in ("time", "monotonic", "perf_counter"):
            monkeypatch.setattr(time, name, lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_line_covers_a_second_and_later_half_a_minute(clock: Clock) -> None:
    log = MemoryLog()
    work = WorkRecord(Ledger(log, generation=1, rank=1))
    work.begin()
    for step in range(1, 36_001):
        clock.now += 0.1
        work.step_ended(step)
    work.end()
    lines = read_ledger(bytes(log.data))
    lengths = [line["time"] - line["began"] for line in lines]
    assert lengths[0] == pytest.approx(1.0)
    assert max(lengths) == pytest.approx(30.0, abs=0.2)
    assert len(lines) < 300
    steps = [step for line in lines for step in range(line["first"], line["last"] + 1)]
    assert steps == list(range(1, 36_001))


def test_waits_for_data_are_those_of_the_line(clock: Clock) -> None:
    log = MemoryLog()
    work = WorkRecord(Ledger(log, generation=1, rank=0))
    work.begin()
    for step in (1, 2):
        with DATA_WAITS.waiting():
            clock.now += 0.25 * step
        clock.now += 1.0
        work.step_ended(step)
    assert [line["data_s"] for line in read_ledger(bytes(log.data))] == [0.25, 0.5]


def test_what_is_left_is_written_at_the_end_and_once(clock: Clock) -> None:
    log = MemoryLog()
    work = WorkRecord(Ledger(log, generation=1, rank=0))
    work.begin()
    work.step_ended(1)
    work.end()
    work.end()
    with work.stalled(1):
        clock.now += 5.0
    (line,) = read_ledger(bytes(log.data))
    assert (line["event"], line["first"], line["last"]) == ("work", 1, 1)


def test_a_stall_is_written_if_it_lasts(clock: Clock) -> None:
    log = MemoryLog()
    work = WorkRecord(Ledger(log, generation=1, rank=0))
    work.begin()
    for seconds in (0.0005, 0.2):
        with work.stalled(7):
            clock.now += seconds
    (line,) = read_ledger(bytes(log.data))
    assert (line["event"], line["step"], line["seconds"]) == ("stall", 7, pytest.approx(0.2))


def test_waits_are_taken_once(clock: Clock) -> None:
    waits = Waits()
    with waits.waiting():
        clock.now += 2.0
    assert waits.take() == 2.0
    assert waits.take() == 0.0


def test_the_start_of_the_process_is_the_first_session_s() -> None:
    started = process_started()
    assert started is not None
    assert started < time.time()
    startup = StartUp()
    with startup.during("process_group"):
        pass
    first = startup.take()
    assert first[PROCESS][0] == pytest.approx(started, abs=0.1)
    assert set(first) == {PROCESS, "process_group"}
    assert startup.take() == {}


def test_the_launcher_s_word_of_the_rendezvous_reaches_the_ledger(tmp_path: Path) -> None:
    STARTUP.take()
    note_rendezvous("100.000 120.500 121.250")
    with keepstep.open(str(tmp_path / "run"), every=2) as session:
        session.restore()
        for _ in range(2):
            session.tick()
    events = read_ledgers(LocalStorage(tmp_path / "run"))
    (start,) = [event for event in events if event["event"] == "start"]
    assert start["before"] == {"waiting": [100.0, 120.5], "rendezvous": [120.5, 121.25]}
    assert start["opened"] <= start["loading"] <= start["time"]
    names = [event["event"] for event in events]
    assert names.count("save_begun") == names.count("save") == 1
    assert names[-1] == "end", "failures are counted by it"
    (save,) = [event for event in events if event["event"] == "save"]
    assert save["began"] <= save["persisting"] <= save["time"]


def test_a_session_that_fails_leaves_its_last_steps(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), keepstep.open(str(tmp_path / "run")) as session:
        session.restore()
        session.tick()
        raise ZeroDivisionError
    lines = (tmp_path / "run/ledger/g000001/rank-00000.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "work"
