"""Time split by cause, and the price of restarts."""

import json
import time
from pathlib import Path

import pytest
from ledger_events import SAMPLES_PER_STEP, event, in_order, life, on_all

import keepstep
from keepstep.cli.main import main
from keepstep.commit.ledgers import read_ledgers
from keepstep.observability.account_document import account_document
from keepstep.observability.goodput import account, failure_rate, restarts, save_costs
from keepstep.observability.spans import Cause
from keepstep.observability.timeline import timeline
from keepstep.observability.waits import DATA_WAITS
from keepstep.storage.local import LocalStorage


def killed_once() -> list[dict[str, object]]:
    first = life(1, began=100.0, last_step=10)
    second = life(2, began=117.0, first_step=7, last_step=20, cause="rank 1 died")
    return [*first, *second]


def test_the_parts_add_up_to_the_whole() -> None:
    whole = account(timeline(killed_once()))
    assert whole.process_seconds == 2 * (15.0 + 21.0)
    assert sum(whole.by_cause.values()) == pytest.approx(whole.process_seconds)
    assert whole.goodput == pytest.approx(20 / 36)
    assert whole.by_cause[Cause.REDO] == 8.0


def test_waiting_for_nodes_lowers_the_ettr_and_not_the_goodput() -> None:
    events = in_order(
        life(1, began=100.0, last_step=5),
        on_all(2, "stop", 1, 110.0, step=5, reason="notice", is_preempted=True),
        on_all(2, "end", 1, 110.0, step=5),
        life(2, began=200.0, first_step=6, last_step=10, restart_count=0),
    )
    whole = account(timeline(events))
    assert whole.goodput == pytest.approx(10 / 20)
    assert whole.ettr == pytest.approx(10 / 110)


def test_a_restart_costs_its_recovery_and_the_steps_done_again() -> None:
    (restart,) = restarts(timeline(killed_once()))
    assert (restart.reached_step, restart.resumed_step, restart.lost_steps) == (10, 6, 4)
    assert restart.lost_samples == 4 * SAMPLES_PER_STEP
    assert restart.recovery_seconds == pytest.approx(7.0)
    assert restart.seconds == pytest.approx(11.0)
    assert restart.cause == "rank 1 died"
    assert restart.cost(3600.0) == pytest.approx(22.0), "two processes, one a second each"


def test_a_departure_that_was_announced_loses_no_step() -> None:
    events = in_order(
        life(1, began=100.0, last_step=5),
        on_all(2, "stop", 1, 110.0, step=5, reason="SIGTERM on rank 0", is_preempted=True),
        on_all(2, "end", 1, 110.0, step=5),
        life(2, began=111.0, first_step=6, last_step=9),
    )
    (restart,) = restarts(timeline(events))
    assert restart.was_announced
    assert (restart.lost_steps, restart.lost_samples) == (0, 0)
    assert restart.cause == "preempted: SIGTERM on rank 0"


def test_failures_and_saves_are_measured() -> None:
    events = in_order(
        killed_once(),
        [
            event("stall", 1, 1, 108.0, step=3, seconds=0.2),
            event("stall", 1, 1, 112.0, step=7, seconds=0.4),
            event("save", 1, 0, 110.0, step=3, plan_s=0.1, write_s=1.9),
            event("save", 1, 0, 114.0, step=7, plan_s=0.1, write_s=2.9),
        ],
    )
    episodes = timeline(events)
    saves, failures = save_costs(episodes), failure_rate(episodes)
    assert saves is not None
    assert failures is not None
    assert (saves.count, saves.stall_seconds) == (2, pytest.approx(0.3))
    assert saves.slowest_seconds == pytest.approx(3.0)
    assert (failures.count, failures.mean_seconds) == (1, pytest.approx(10 + 14))
    assert failures.recovery_seconds == pytest.approx(7.0)
    assert failures.notice_fraction == 0


def test_a_run_that_never_failed_has_no_failure_rate() -> None:
    episodes = timeline(life(1, began=100.0, last_step=10))
    assert failure_rate(episodes) is None
    assert save_costs(episodes) is None
    assert account_document(episodes)["restarts"] == []


def test_a_real_run_is_accounted_for_whole(tmp_path: Path) -> None:
    began = time.time()
    uri = str(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), keepstep.open(uri, every=4) as session:
        session.restore()
        train(session, steps=6)
        raise ZeroDivisionError
    with keepstep.open(uri, every=4) as session:
        session.restore()
        train(session, steps=10)
    ended = time.time()

    one, other = timeline(read_ledgers(LocalStorage(tmp_path / "run")))
    whole = account([one, other])
    assert sum(whole.by_cause.values()) == pytest.approx(whole.process_seconds, rel=0.01)
    assert whole.by_cause[Cause.UNKNOWN] <= 0.01 * whole.process_seconds
    # Before the first session there was this test session; the second one found it running.
    assert other.ended - one.ended <= ended - began
    assert whole.by_cause[Cause.EVAL] >= 0.02
    assert whole.by_cause[Cause.DATA] >= 0.02
    (restart,) = restarts([one, other])
    assert (restart.reached_step, restart.resumed_step, restart.lost_samples) == (6, 4, 16)


def test_the_command_gives_the_account_as_json_and_as_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(tmp_path / "run")
    with keepstep.open(uri, every=4) as session:
        session.restore()
        train(session, steps=5)
    assert main(["report", uri, "--json", "--price", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["generations"] == 1
    parts = [cause["part"] for cause in document["causes"].values()]
    assert sum(parts) == pytest.approx(1, abs=0.01)
    assert document["causes"]["productive"]["cost"] >= 0
    assert main(["report", uri]) == 0
    assert "goodput" in capsys.readouterr().out
    page = tmp_path / "report.html"
    assert main(["report", uri, "--html", str(page)]) == 0
    assert "Where the time went" in page.read_text()
    capsys.readouterr()
    assert main(["report", uri, "--html", str(tmp_path / "nowhere" / "a.html")]) == 64
    assert "nowhere" in capsys.readouterr().err
    assert main(["report", uri, "--price", "-1"]) == 64


def train(session: keepstep.Session, *, steps: int) -> None:
    while session.step < steps:
        with DATA_WAITS.waiting():
            time.sleep(0.01)
        session.tick(samples=SAMPLES_PER_STEP)
    with session.phase("eval"):
        time.sleep(0.02)
