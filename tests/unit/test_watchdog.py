"""Deadlines, heartbeats and what is learned; by processes of their own where one has to end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import keepstep
from keepstep.elastic.heartbeat import Heartbeat, read_beat
from keepstep.elastic.watchdog import SAVE, STEP, Watchdog, WatchdogPolicy
from keepstep.observability.ledger import read_ledger
from keepstep.processes import die_with

POLICY = WatchdogPolicy(floor_seconds=10, factor=3, unlearned_seconds=100)


def unarmed(heartbeat: Path | None = None) -> Watchdog:
    return Watchdog(POLICY, heartbeat, is_armed=False)


def test_what_was_never_seen_to_end_has_the_time_for_that() -> None:
    assert unarmed().allowed_seconds(STEP) == 100


@pytest.mark.parametrize(("longest", "allowed"), [(1.0, 10), (5.0, 15)])
def test_what_was_seen_has_a_multiple_of_the_longest_but_not_less_than_the_floor(
    longest: float, allowed: float
) -> None:
    watchdog = unarmed()
    watchdog.learn({STEP: longest})
    assert watchdog.allowed_seconds(STEP) == allowed
    assert watchdog.allowed_seconds(SAVE) == 100


def test_a_section_with_deadlines_of_its_own_has_at_least_those() -> None:
    watchdog = unarmed()
    watchdog.learn({SAVE: 1.0})
    assert watchdog.allowed_seconds(SAVE, at_least_seconds=40) == 40


def test_what_is_learned_only_grows() -> None:
    watchdog = unarmed()
    watchdog.learn({STEP: 5.0})
    watchdog.learn({STEP: 2.0, SAVE: 1.0})
    assert watchdog.longest == {STEP: 5.0, SAVE: 1.0}


def test_the_first_step_is_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watchdog = unarmed()
    watchdog.begin("first step")
    clock.pass_seconds(50)
    watchdog.tick(1)
    assert watchdog.longest == {}
    clock.pass_seconds(2)
    watchdog.tick(2)
    assert watchdog.longest == {STEP: 2.0}


def test_the_clock_of_a_step_stands_still_during_an_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    watchdog = unarmed()
    watchdog.tick(1)
    clock.pass_seconds(1)
    with watchdog.section("eval"):
        clock.pass_seconds(30)
    clock.pass_seconds(2)
    watchdog.tick(2)
    assert watchdog.longest == {STEP: 3.0, "eval": 30.0}


def test_a_section_that_fails_is_not_learned_from() -> None:
    watchdog = unarmed()
    with pytest.raises(OSError, match="full"), watchdog.section(SAVE):
        raise OSError("full")
    assert watchdog.longest == {}


def test_a_heartbeat_tells_all_there_is(tmp_path: Path) -> None:
    beats = Heartbeat(tmp_path / "0")
    beats.beat("first step", step=7, since_ns=5, deadline_ns=6)
    beats.beat("eval", step=8, since_ns=9, deadline_ns=10)
    beats.commit(2, 5)
    beats.tell(11)
    beat = read_beat(tmp_path / "0")
    assert beat is not None
    assert (beat.pid, beat.section, beat.step) == (os.getpid(), "eval", 8)
    assert (beat.since_ns, beat.deadline_ns) == (9, 10)
    assert (beat.commits, beat.committed_step, beat.told_ns) == (2, 5, 11)


@pytest.mark.parametrize("content", [None, b"", b"x" * 200])
def test_without_a_heartbeat_nothing_is_known(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "0").write_bytes(content)
    assert read_beat(tmp_path / "0") is None


def test_a_beat_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    beats = Heartbeat(tmp_path / "0")
    beats._numbers[1] += 1
    assert read_beat(tmp_path / "0") is None


def test_an_unarmed_watchdog_reports_and_expects_nothing(tmp_path: Path) -> None:
    watchdog = unarmed(tmp_path / "0")
    watchdog.tick(3)
    beat = read_beat(tmp_path / "0")
    assert beat is not None
    assert (beat.section, beat.step, beat.deadline_ns) == (STEP, 3, 0)


_HANGS = """
import ctypes, sys, time
from keepstep.elastic.watchdog import Watchdog, WatchdogPolicy
watchdog = Watchdog(WatchdogPolicy(floor_seconds=0.1, unlearned_seconds=0.1))
watchdog.begin("init")
"""


def test_a_process_that_holds_the_interpreter_ends_with_its_stacks() -> None:
    hangs = f"{_HANGS}def here():\n    ctypes.PyDLL(None).sleep(60)\nhere()"
    done = run_python(hangs)
    assert done.returncode == 88
    assert "in here\n" in done.stderr


def test_a_process_that_rests_or_is_through_in_time_goes_on() -> None:
    done = run_python(
        f"{_HANGS}for step in range(30):\n    time.sleep(0.01)\n    watchdog.tick(step)\n"
        "watchdog.rest()\ntime.sleep(1.9)\nsys.exit(7)"
    )
    assert (done.returncode, done.stderr) == (7, "")


def test_a_process_whose_parent_is_gone_already_ends() -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    source = "import sys; from keepstep.processes import die_with; die_with(int(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", source, str(gone.pid)], check=False, capture_output=True
    )
    assert done.returncode == 1


def test_another_living_process_may_stand_between_the_agent_and_its_worker() -> None:
    die_with(os.getppid())


def test_a_session_measures_its_sections_and_the_next_one_learns_from_it(tmp_path: Path) -> None:
    first = unarmed()
    with keepstep.open(str(tmp_path / "run"), every=2, watchdog=first) as session:
        session.restore()
        for _ in range(4):
            session.tick()
        with session.phase("eval"):
            pass
        session.tick()
        session.tick()
    assert set(first.longest) == {"step", "save", "eval"}, "nothing was loaded"
    ledger = read_ledger((tmp_path / "run/ledger/g000001/rank-00000.jsonl").read_bytes())
    (phase,) = [event for event in ledger if event["event"] == "phase"]
    assert (phase["name"], phase["step"]) == ("eval", 4)

    second = unarmed()
    with keepstep.open(str(tmp_path / "run"), every=2, watchdog=second) as session:
        session.restore()
        assert set(second.longest) == {"load", "step", "save", "eval"}


class Clock:
    """The monotonic clock, which passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = 1_000_000_000
        monkeypatch.setattr(time, "monotonic_ns", lambda: self._now)

    def pass_seconds(self, seconds: float) -> None:
        self._now += int(seconds * 1e9)


def run_python(source: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", source], check=False, capture_output=True, text=True, timeout=60
    )
