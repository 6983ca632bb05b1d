"""Notices of preemption: from signals, a file, and the clouds' metadata services."""

import math
import multiprocessing
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from keepstep.elastic.notices import Notice, Notices
from keepstep.elastic.preemption import NoticeSources, Preemption
from keepstep.elastic.probes import Cloud, FileProbe, ProbeThread, cloud_probe
from keepstep.errors import ExitCode
from keepstep.session.stopping import Agreed, Demand, Stopping
from keepstep.testing.metadata_service import MetadataService

CLOUDS: list[Cloud] = ["aws", "gcp", "azure"]


def test_the_first_notice_counts_and_later_ones_only_shorten_it() -> None:
    notices = Notices()
    assert notices.first is None
    notices.post("SIGTERM", grace_seconds=30)
    notices.post("aws", grace_seconds=120)
    assert notices.first is not None
    assert notices.first.source == "SIGTERM"
    assert 20 < notices.first.remaining_seconds <= 30
    notices.post("SIGTERM", grace_seconds=2)
    assert notices.first.remaining_seconds <= 2


def test_listeners_hear_it_once_whenever_they_come() -> None:
    notices, heard = Notices(), list[Notice]()
    notices.listen(heard.append)
    notices.post("one", grace_seconds=1)
    notices.post("two", grace_seconds=1)
    late = list[Notice]()
    notices.listen(late.append)
    assert [notice.source for notice in (*heard, *late)] == ["one", "one"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_clouds_are_asked_as_they_want_to_be(cloud: Cloud) -> None:
    with MetadataService() as service:
        probe = cloud_probe(cloud, service.url)
        assert probe.look() is None
        service.preempt(seconds=60)
        seconds = probe.look()
        assert seconds is not None
        assert 20 < seconds <= 61


def test_on_azure_the_end_of_another_machine_is_no_notice() -> None:
    with MetadataService() as service:
        service.preempt(seconds=60, machine="trainers_4")
        assert cloud_probe("azure", service.url).look() is None


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_clock_that_is_wrong_leaves_some_time(cloud: Cloud) -> None:
    with MetadataService() as service:
        service.preempt(seconds=-3600)
        seconds = cloud_probe(cloud, service.url).look()
        assert seconds is not None
        assert seconds >= 5


def test_a_service_that_is_not_there_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    with MetadataService() as service:
        probe = cloud_probe("gcp", service.url)
    notices, heard = Notices(), threading.Event()
    notices.listen(lambda _: heard.set())

    class Flaky:
        name = "flaky"
        asked = 0

        def look(self) -> float | None:
            self.asked += 1
            return probe.look() if self.asked < 3 else 9.0

    flaky = Flaky()
    thread = ProbeThread([flaky], notices, every_seconds=0.01)
    assert heard.wait(20)
    thread.close()
    assert flaky.asked == 3
    assert len([r for r in caplog.records if "flaky cannot be asked" in r.message]) == 1


def test_a_file_is_a_notice_and_may_say_how_long(tmp_path: Path) -> None:
    probe = FileProbe(tmp_path / "notice", 30.0)
    assert probe.look() is None
    probe.path.write_text("")
    assert probe.look() == 30.0
    probe.path.write_text("12.5\n")
    assert probe.look() == 12.5


CHILD = """
import os, signal, sys, threading, time
from pathlib import Path
from keepstep.elastic.preemption import NoticeSources, Preemption
with Preemption(NoticeSources(grace_seconds=float(sys.argv[2]))) as preemption:
    if sys.argv[1] != "early":
        preemption.take_over()
    if sys.argv[1] == "committed":
        preemption.committed()
    heard = threading.Event()
    preemption.notices.listen(lambda notice: print(notice.source, flush=True))
    print("ready", flush=True)
    if sys.argv[1] == "deaf":
        import ctypes
        ctypes.PyDLL(None).usleep(60_000_000)  # keeps the interpreter's lock
    if sys.argv[1] == "failing":
        while preemption.notice is None:
            time.sleep(0.05)
        preemption.fail(ValueError("of the loop"))
    if sys.argv[1] == "busy":
        import ctypes
        ctypes.CDLL(None).usleep(60_000_000)  # the main thread hears nothing
    while True:
        time.sleep(0.05)
"""


@pytest.fixture
def child() -> Callable[..., subprocess.Popen[str]]:
    def start(mode: str, grace_seconds: float) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, mode, str(grace_seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_heard_while_the_main_thread_is_in_c(
    child: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = child("busy", 30)
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{number.name}\n"
    process.kill()
    process.communicate()


def test_a_process_that_does_not_leave_in_time_says_so_in_its_exit_code(
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    process = child("busy", 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == ExitCode.PREEMPTED_UNSAVED
    process.communicate()


def test_what_is_committed_counts_whatever_ends_the_process(
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    process = child("committed", 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == ExitCode.PREEMPTED
    process.communicate()


def test_an_error_after_a_notice_is_told(child: Callable[..., subprocess.Popen[str]]) -> None:
    process = child("failing", 600)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == ExitCode.PREEMPTED_UNSAVED
    assert "ValueError: of the loop" in told


def test_a_notice_during_a_save_leaves_it_all_its_time() -> None:
    with Preemption(NoticeSources(signals=False)) as preemption:
        preemption.take_over()
        for _ in range(2):
            preemption.agreed(save_seconds=1.0)
        with preemption.patient():
            preemption.notices.post("SIGTERM", grace_seconds=600)
        assert preemption._timer is not None
        assert preemption._timer.interval > 500


def test_a_signal_that_comes_again_later_means_now(
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    process = child("busy", 600)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(0.4)
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == ExitCode.PREEMPTED_UNSAVED
    process.communicate()


def test_before_training_there_is_nothing_to_save(
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    process = child("early", 600)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == ExitCode.PREEMPTED
    process.communicate()


def _say_and_wait(pipe: Connection) -> None:
    pipe.send("ready")
    pipe.recv()


def test_what_ends_a_forked_process_is_no_notice_to_this_one() -> None:
    with Preemption(NoticeSources()) as preemption:
        preemption.take_over()
        heard = threading.Event()
        preemption.notices.listen(lambda notice: heard.set())
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_say_and_wait, args=(theirs,))
        child.start()
        assert ours.recv() == "ready"
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
        assert not heard.is_set()
        signal.raise_signal(signal.SIGUSR1)
        assert heard.wait(10)
        assert preemption.notice is not None
        assert preemption.notice.source == "SIGUSR1"


def test_handlers_of_others_are_left_alone_and_ours_are_taken_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Preemption(NoticeSources()):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    own = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with Preemption(NoticeSources()):
            assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGUSR1, own)


def agreed(*stoppings: tuple[Stopping, float]) -> Agreed:
    votes = [stopping.votes(save_seconds) for stopping, save_seconds in stoppings]
    return Agreed.of([max(column) for column in zip(*votes, strict=True)])


def test_ranks_agree_on_the_largest_demand_and_the_least_time() -> None:
    quiet, asking = (Stopping(Preemption(NoticeSources(signals=False))) for _ in range(2))
    told, hurried = (Preemption(NoticeSources(signals=False)) for _ in range(2))
    for preemption in (told, hurried):
        preemption.take_over()
    told.notices.post("SIGTERM", grace_seconds=100)
    hurried.notices.post("SIGTERM", grace_seconds=5)
    asking.request("enough")
    assert agreed((quiet, 0.0), (quiet, 0.0)) == Agreed(Demand.GO_ON, math.inf, 0.0)
    assert agreed((quiet, 1.0), (asking, 2.0)) == Agreed(Demand.STOP, math.inf, 2.0)
    both = agreed((quiet, 3.0), (asking, 1.0), (Stopping(told), 0.0), (Stopping(hurried), 0.0))
    assert (both.demand, both.save_seconds) == (Demand.LEAVE, 3.0)
    assert 4 < both.remaining_seconds <= 5
    assert both.leaves_time_for(1)
    assert not both.leaves_time_for(2)
    for preemption in (told, hurried):
        preemption.close()


def test_signals_are_the_main_threads_business() -> None:
    outcome = list[bool]()

    def open_in_a_thread() -> None:
        with Preemption(NoticeSources()):
            outcome.append(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)

    thread = threading.Thread(target=open_in_a_thread)
    thread.start()
    thread.join()
    assert outcome == [True]
