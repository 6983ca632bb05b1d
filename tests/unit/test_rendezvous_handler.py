"""Handlers of several nodes as threads of one process, on a real store."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
)

from keepstep.elastic.rendezvous.handler import KeepstepRendezvousHandler
from keepstep.elastic.rendezvous.link import Endpoint, Link, connect, is_own_address, serve
from keepstep.elastic.rendezvous.roster import Roster
from keepstep.elastic.rendezvous.settings import Settings
from keepstep.testing.ports import claim_ports

QUICK = Settings(last_call_timeout=0.2, heartbeat_interval=0.1, heartbeat_timeout=1.5)


class Job:
    """Handlers of one run, and the store they meet at."""

    def __init__(self) -> None:
        self.ports = claim_ports()
        self.endpoint = Endpoint("127.0.0.1", self.ports.first)
        self.store = serve("127.0.0.1", self.endpoint.port)
        self.handlers: list[KeepstepRendezvousHandler] = []
        self.told: dict[KeepstepRendezvousHandler, dict[str, str]] = {}
        self.threads = ThreadPoolExecutor(8)

    def node(
        self, name: str, *, least: int = 2, most: int = 3, settings: Settings = QUICK
    ) -> KeepstepRendezvousHandler:
        told: dict[str, str] = {}
        handler = KeepstepRendezvousHandler(
            RendezvousParameters("keepstep", str(self.endpoint), "run", least, most, name),
            settings,
            self.endpoint,
            tell_workers=told.update,
            committed_at=lambda: None,
        )
        self.handlers.append(handler)
        self.told[handler] = told
        return handler

    def meet(self, *handlers: KeepstepRendezvousHandler) -> list[RendezvousInfo]:
        return [future.result(30) for future in [self.begin(each) for each in handlers]]

    def begin(self, handler: KeepstepRendezvousHandler) -> "Future[RendezvousInfo]":
        return self.threads.submit(handler.next_rendezvous)

    def roster(self) -> Roster:
        return Link(connect(self.endpoint), "run").read() or Roster()

    def close(self) -> None:
        for handler in self.handlers:
            handler.leave()
        self.threads.shutdown()
        self.ports.release()


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    job.close()


def wait_until(condition: Callable[[], Any]) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def run_agent(handler: KeepstepRendezvousHandler, failure: Exception | None) -> None:
    """As torchrun ends."""
    try:
        if failure is not None:
            raise failure
    finally:
        assert handler.shutdown()


def test_each_round_has_a_number_and_a_fresh_store(job: Job) -> None:
    a, b = job.node("localhost"), job.node("localhost")
    first = job.meet(a, b)
    assert sorted(info.rank for info in first) == [0, 1]
    assert {info.world_size for info in first} == {2}
    for told in (job.told[a], job.told[b]):
        began, enough, ended = map(float, told["KEEPSTEP_RENDEZVOUS"].split())
        assert began <= enough <= ended
        assert (told["KEEPSTEP_ROUND"], told["KEEPSTEP_MIN_NODES"]) == ("1", "2")
    first[0].store.set("left over", "by the dead")
    assert first[1].store.get("left over") == b"by the dead"
    second = job.meet(a, b)
    assert job.told[a]["KEEPSTEP_ROUND"] == job.told[b]["KEEPSTEP_ROUND"] == "2"
    assert not second[0].store.check(["left over"])
    points = {info.bootstrap_store_info.master_port for info in second}
    assert len(points) == 1
    assert points != {first[0].bootstrap_store_info.master_port}


def test_members_are_told_of_one_that_comes_back_and_of_one_that_leaves(job: Job) -> None:
    a, b, c = (job.node("localhost") for _ in range(3))
    job.meet(a, b, c)
    assert [each.num_nodes_waiting() for each in (a, b, c)] == [0, 0, 0]
    returning = job.begin(c)
    wait_until(a.num_nodes_waiting)
    wait_until(b.num_nodes_waiting)
    job.meet(a, b)
    assert returning.result(30).world_size == 3
    assert c.leave()
    wait_until(a.num_nodes_waiting)
    assert [info.world_size for info in job.meet(a, b)] == [2, 2]


def test_silent_node_is_taken_for_dead_and_the_others_go_on(job: Job) -> None:
    a, b, c = (job.node("localhost") for _ in range(3))
    job.meet(a, b, c)
    c._keeper.stop()
    c._is_left = True
    wait_until(a.num_nodes_waiting)
    assert [info.world_size for info in job.meet(a, b)] == [2, 2]


def test_failure_leaves_and_success_completes(job: Job) -> None:
    a, b, c = (job.node("localhost") for _ in range(3))
    job.meet(a, b, c)
    with pytest.raises(ChildProcessError):
        run_agent(c, ChildProcessError("workers failed"))
    assert not job.roster().is_complete
    run_agent(a, None)
    assert job.roster().is_complete
    wait_until(b.is_closed)
    with pytest.raises(SystemExit) as ended:
        b.next_rendezvous()
    assert ended.value.code == 0


def test_too_few_nodes_are_named_after_the_time(job: Job) -> None:
    a = job.node("localhost", settings=Settings(join_timeout=0.5))
    with pytest.raises(RendezvousTimeoutError, match=r"needs 2 node\(s\); joining: localhost"):
        a.next_rendezvous()


def test_a_spare_that_has_waited_long_waits_anew_when_it_is_needed(job: Job) -> None:
    settings = replace(QUICK, join_timeout=2.0)
    a, b, spare = (job.node("localhost", most=2, settings=settings) for _ in range(3))
    job.meet(a, b)
    waiting = job.begin(spare)
    wait_until(lambda: job.roster().joining)
    time.sleep(2.5)
    assert a.leave()
    time.sleep(1.5)
    assert not waiting.done()
    job.meet(b)
    assert waiting.result(30).world_size == 2


def test_who_gives_up_sees_whether_the_others_go_on(job: Job) -> None:
    a, b, c = (job.node("localhost") for _ in range(3))
    job.meet(a, b, c)
    others = [job.begin(each) for each in (a, b)]
    assert c.others_go_on(within_seconds=20)
    assert c.leave()
    assert {future.result(30).world_size for future in others} == {2}
    failing = [job.threads.submit(each.others_go_on, within_seconds=20) for each in (a, b)]
    assert [future.result(30) for future in failing] == [False, False]


def test_who_cannot_reach_what_others_reach_leaves_them(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off = job.node("127.0.0.2")  # by name behind the others

    def connect_unless_cut_off(endpoint: Endpoint, timeout_seconds: float = 5.0) -> Any:
        if threading.current_thread() is me and endpoint != job.endpoint:
            time.sleep(0.5)  # the others are quicker
            raise ConnectionError("no route")
        return connect(endpoint, timeout_seconds)

    monkeypatch.setattr("keepstep.elastic.rendezvous.handler.connect", connect_unless_cut_off)
    a, b = job.node("127.0.0.1"), job.node("127.0.0.1")
    errors: list[Exception] = []

    def join() -> None:
        try:
            cut_off.next_rendezvous()
        except RendezvousConnectionError as error:
            errors.append(error)
        cut_off.leave()

    me = threading.Thread(target=join)
    me.start()
    assert [info.world_size for info in job.meet(a, b)] == [2, 2]
    me.join(30)
    assert "is out of reach: no route: this node leaves" in str(errors[0])


def test_rank_0_that_has_no_address_says_so(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(host: str, port: int) -> Any:
        raise RuntimeError(f"no address of {host} port {port} is known")

    monkeypatch.setattr("keepstep.elastic.rendezvous.handler.serve", unknown)
    a = job.node("name.invalid", least=1, most=1)
    with pytest.raises(RendezvousConnectionError, match="--local-addr"):
        a.next_rendezvous()


def test_missing_store_is_named_after_the_time(job: Job) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        job.endpoint = Endpoint("127.0.0.1", unused.getsockname()[1])
        a = job.node("localhost", settings=Settings(store_timeout=0.5, is_host=False))
        with pytest.raises(RendezvousConnectionError, match="keepstep store"):
            a.next_rendezvous()


def test_roster_of_another_version_is_named_after_the_time(job: Job) -> None:
    connect(job.endpoint).set("keepstep/rendezvous/run/roster", '{"of": "tomorrow"}')
    a = job.node("localhost", settings=replace(QUICK, store_timeout=0.5))
    with pytest.raises(RendezvousConnectionError, match="same version on all nodes"):
        a.next_rendezvous()


def test_node_at_the_endpoint_hosts_the_store_if_nobody_does(job: Job) -> None:
    job.endpoint = Endpoint("127.0.0.1", job.ports.first + 1)
    assert [info.world_size for info in job.meet(job.node("localhost"), job.node("localhost"))] == [
        2,
        2,
    ]
    assert is_own_address("127.0.0.1")
    assert not is_own_address("192.0.2.1")


def test_empty_store_in_the_place_of_a_lost_one_is_told_everything(job: Job) -> None:
    quick = replace(QUICK, is_host=False)
    a, b = (job.node("localhost", most=2, settings=quick) for _ in range(2))
    job.meet(a, b)
    job.meet(a, b)
    # The store goes with its last reference.
    del job.store
    wait_until(lambda: not a._keeper.sight.is_connected and not b._keeper.sight.is_connected)
    assert a.num_nodes_waiting() == b.num_nodes_waiting() == 0
    job.store = serve("127.0.0.1", job.endpoint.port)
    wait_until(lambda: a._keeper.sight.is_connected and b._keeper.sight.is_connected)
    assert job.roster().round == 2
    assert a.num_nodes_waiting() == b.num_nodes_waiting() == 0
    job.meet(a, b)
    assert job.told[a]["KEEPSTEP_ROUND"] == "3"


def test_node_that_finds_the_store_again_later_is_not_taken_for_dead(job: Job) -> None:
    quick = replace(QUICK, is_host=False)
    a, b = (job.node("localhost", most=2, settings=quick) for _ in range(2))
    job.meet(a, b)
    dial, may_dial = b._keeper._dial, threading.Event()

    def dial_later() -> Link:
        if not may_dial.is_set():
            raise ConnectionError("not yet")
        return dial()

    b._keeper._dial = dial_later
    del job.store
    wait_until(lambda: not a._keeper.sight.is_connected and not b._keeper.sight.is_connected)
    away = time.monotonic()
    wait_until(lambda: time.monotonic() > away + QUICK.heartbeat_timeout)
    job.store = serve("127.0.0.1", job.endpoint.port)
    wait_until(lambda: a._keeper.sight.is_connected)
    back = time.monotonic()
    wait_until(lambda: a._keeper.sight.times.now > back + 1.0)  # ten looks
    assert len(job.roster().members) == 2
    may_dial.set()
    wait_until(lambda: b._keeper.sight.is_connected)
    assert a.num_nodes_waiting() == b.num_nodes_waiting() == 0


def test_node_that_leaves_while_it_joins_leaves_no_ghost(job: Job) -> None:
    for _ in range(3):
        a = job.node("localhost")
        waiting = job.begin(a)
        assert a.leave()
        assert a._node not in job.roster().nodes
        with pytest.raises(RendezvousClosedError):
            waiting.result(30)


def test_thread_that_hangs_in_the_store_holds_up_nobody(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = job.node("localhost", least=1, most=1)
    job.meet(a)
    monkeypatch.setattr("keepstep.elastic.rendezvous.keeper._HUNG_SECONDS", 0.3)
    never = threading.Event()
    monkeypatch.setattr(Link, "beat", lambda self, node: never.wait())
    wait_until(lambda: not a._keeper.sight.is_connected)
    assert a.num_nodes_waiting() == 0
    monkeypatch.undo()
    wait_until(lambda: a._keeper.sight.is_connected)
    assert a.num_nodes_waiting() == 0
    never.set()
