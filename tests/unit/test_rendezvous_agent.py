"""What keepstep adds to torchrun's agent, and what its store server answers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_launch_env import TORCHRUN
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.elastic.rendezvous import RendezvousParameters

from keepstep.cli.main import main
from keepstep.elastic.rendezvous.link import Link, serve
from keepstep.elastic.rendezvous.roster import Roster
from keepstep.errors import ConfigError, CoordinationError, ExitCode
from keepstep.launch.agent import CommitMark, _hear_signals, _honor_stop_time, endpoint_from
from keepstep.launch.env import round_from, tell_agent_of_commit, world_from
from keepstep.testing.ports import claim_ports


@pytest.fixture
def torch_left_alone() -> Iterator[None]:
    stop = LocalElasticAgent._stop_workers
    yield
    LocalElasticAgent._stop_workers = stop  # type: ignore[method-assign]


def params(endpoint: str) -> RendezvousParameters:
    return RendezvousParameters("keepstep", endpoint, "run", 1, 2)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("store:1234", "store:1234"),
        ("store", "store:29400"),
        ("[fd00::1]:1234", "fd00::1:1234"),
        ("[fd00::1]", "fd00::1:29400"),
    ],
)
def test_endpoint_is_read(text: str, endpoint: str) -> None:
    assert str(endpoint_from(params(text))) == endpoint


@pytest.mark.parametrize(("text", "message"), [("", "is missing"), ("a:b", "'b' is no port")])
def test_endpoint_that_cannot_be_right_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        endpoint_from(params(text))


def test_signal_ends_the_agent_before_any_worker_runs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _hear_signals("SIGTERM,SIGNONSENSE")
        with pytest.raises(SignalException, match="SIGTERM came to agent"):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signal_that_somebody_handles_is_left_to_them() -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        _hear_signals("SIGUSR2")
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.usefixtures("torch_left_alone")
@pytest.mark.parametrize(("configured", "expected"), [(None, 77), (5.0, 5.0)])
def test_workers_stopped_for_a_restart_have_the_configured_time(
    configured: float | None, expected: float
) -> None:
    stopped: list[object] = []

    def close(death_sig: object = None, timeout: float = 30) -> None:
        stopped.append(timeout)

    agent = object.__new__(LocalElasticAgent)
    agent._worker_watchdog = agent._health_check_server = None
    agent._shutdown_timeout, agent._pcontext = 77, SimpleNamespace(close=close)
    _honor_stop_time(configured)
    agent._stop_workers(SimpleNamespace(spec=SimpleNamespace(role="trainer")))
    assert stopped == [expected]


@pytest.mark.usefixtures("torch_left_alone")
def test_agent_of_another_shape_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PContext, "close", lambda self, death_sig: None)
    before = LocalElasticAgent._stop_workers
    _honor_stop_time(5.0)
    assert LocalElasticAgent._stop_workers is before


def test_agent_sees_the_commits_of_its_workers() -> None:
    mark = CommitMark()
    assert mark.seen_at() is None
    tell_agent_of_commit({"KEEPSTEP_COMMIT_MARK": str(mark.path)})
    first = mark.seen_at()
    assert first is not None
    assert mark.seen_at() == first
    os.utime(mark.path, ns=(1, 1))
    assert (mark.seen_at() or 0) > first


def test_worker_refuses_a_world_below_the_minimum() -> None:
    with pytest.raises(CoordinationError, match=r"2 node\(s\), fewer than the 3"):
        world_from(TORCHRUN | {"KEEPSTEP_MIN_NODES": "3"})
    assert world_from(TORCHRUN | {"KEEPSTEP_MIN_NODES": "2"}).num_nodes == 2


def test_worker_knows_its_round() -> None:
    assert round_from({"KEEPSTEP_ROUND": "4"}) == 4
    assert round_from({}) is None


def test_project_declares_the_backend() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'torchrun.handlers"]\nkeepstep = "keepstep.launch.agent:get_handler"' in text


def test_store_serves_answers_and_ends_well_when_told_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ports = claim_ports()
    port = ["--host", "127.0.0.1", "--port", str(ports.first)]
    assert main(["store", "--check", *port]) == ExitCode.STORAGE_UNAVAILABLE
    assert "Start one there with `keepstep store`" in capsys.readouterr().err
    program = "import sys; from keepstep.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "store", *port]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == f"rendezvous store on port {ports.first}\n"
        assert main(["store", "--check", *port]) == 0
        assert main(["store", *port]) == ExitCode.CONFIG
        assert "Is a store running there already?" in capsys.readouterr().err
        server.terminate()
        assert server.wait(30) == 0
    ports.release()


def test_store_says_whether_a_job_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    server = serve("127.0.0.1", 0)
    endpoint = ["--endpoint", f"127.0.0.1:{server.port}"]
    link = Link(server, "7.0")
    running = Roster(round=1, formed=("a/1/x",), members=("a/1/x",))
    assert main(["store", "--done", "7.0", *endpoint]) == ExitCode.TRANSIENT
    assert link.replace(None, running)
    assert main(["store", "--done", "7.0", *endpoint]) == ExitCode.TRANSIENT
    assert capsys.readouterr().out == "run 7.0 is not known to be complete\n" * 2
    assert link.replace(running, running.completed())
    assert main(["store", "--done", "7.0", *endpoint]) == ExitCode.OK
    assert capsys.readouterr().out == "run 7.0 is complete\n"
    assert main(["store", "--done", "7.1", *endpoint]) == ExitCode.TRANSIENT


def test_store_with_a_roster_of_another_keepstep_does_not_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve("127.0.0.1", 0)
    server.set("keepstep/rendezvous/7.0/roster", '{"is_complete":true,"of_tomorrow":1}')
    asked = ["store", "--done", "7.0", "--host", "127.0.0.1", "--port", str(server.port)]
    assert main(asked) == ExitCode.STORAGE_UNAVAILABLE
    assert "run the same version on all nodes" in capsys.readouterr().err


def test_store_that_is_away_does_not_say(capsys: pytest.CaptureFixture[str]) -> None:
    ports = claim_ports()
    asked = ["store", "--done", "7.0", "--endpoint", f"127.0.0.1:{ports.first}"]
    assert main(asked) == ExitCode.STORAGE_UNAVAILABLE
    assert f"no rendezvous store answers at 127.0.0.1:{ports.first}" in capsys.readouterr().err
    ports.release()


def test_endpoint_is_for_asking_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "--endpoint", "elsewhere"]) == ExitCode.USAGE
    assert main(["store", "--check", "--endpoint", "elsewhere:x"]) == ExitCode.CONFIG
    assert "--endpoint=elsewhere:x: 'x' is no port" in capsys.readouterr().err
