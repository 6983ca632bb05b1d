"""What a worker hands to its agent, and what the agent makes of it."""

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from keepstep.elastic.heartbeat import Beat
from keepstep.elastic.watchdog import Watchdog
from keepstep.errors import ConfigError
from keepstep.launch.health import NodeHealth, health_of
from keepstep.launch.metrics import NodeState, families
from keepstep.launch.metrics_server import serving
from keepstep.launch.monitor import Sight
from keepstep.launch.tally import Reading, Tally
from keepstep.observability.counters import Counters
from keepstep.observability.numbers import NUMBERS_SUFFIX, Meter, Numbers, read_numbers
from keepstep.observability.section_clock import SectionClock

SECOND = 1_000_000_000


def test_numbers_arrive_as_they_were_set(tmp_path: Path) -> None:
    counters = Counters()
    meter = Meter(counters)
    meter.publish(tmp_path / "0", SectionClock())
    counters.add("saves", outcome="committed")
    counters.add("steps", 7)
    meter.set(step=7, generation=2)
    meter.set_metrics({"loss": float("nan"), "accuracy": 0.5})
    meter.write()
    numbers = read_numbers(tmp_path / "0")
    assert numbers is not None
    assert numbers.gauges == {"step": 7, "generation": 2}
    assert numbers.metrics["accuracy"] == 0.5
    assert numbers.metrics["loss"] != numbers.metrics["loss"]
    assert numbers.counts["saves", (("outcome", "committed"),)] == 1
    assert numbers.counts["steps", ()] == 7
    assert numbers.counts["section_ns", (("section", "start"),)] > 0


def test_numbers_are_written_without_being_asked(tmp_path: Path) -> None:
    meter = Meter(Counters())
    meter.publish(tmp_path / "0", SectionClock())
    give_up = time.monotonic() + 60
    while read_numbers(tmp_path / "0") is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_meter_that_cannot_write_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meter = Meter(Counters())
    meter.publish(tmp_path / "nowhere" / "0", SectionClock())
    meter.write()
    meter.write()
    assert len([r for r in caplog.records if r.name == "keepstep.metrics"]) == 1


@pytest.mark.parametrize("data", [b"", b"[]", b'{"gauges": {}}', b'{"gauges'])
def test_numbers_that_cannot_be_read_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0").write_bytes(data)
    assert read_numbers(tmp_path / "0") is None
    assert read_numbers(tmp_path / "1") is None


def test_the_time_of_sections_adds_up_and_never_goes_back() -> None:
    began = time.monotonic_ns()
    clock = SectionClock()
    is_over = threading.Event()

    def work() -> None:
        for number in range(20_000):
            clock.enter(("step", "save", "")[number % 3], time.monotonic_ns())
        is_over.set()

    worker = threading.Thread(target=work)
    worker.start()
    before: dict[str, int] = {}
    while not is_over.is_set():
        spent = clock.spent_ns()
        assert all(spent[name] >= ns for name, ns in before.items())
        before = spent
    worker.join()
    clock.enter("", time.monotonic_ns())
    assert set(clock.spent_ns()) == {"start", "step", "save"}
    assert sum(clock.spent_ns().values()) <= time.monotonic_ns() - began


def test_the_watchdog_tells_the_clock_what_goes_on() -> None:
    watchdog = Watchdog(is_armed=False)
    watchdog.begin("first step")
    watchdog.tick(1)
    with watchdog.section("eval"):
        pass
    watchdog.rest()
    assert set(watchdog.clock.spent_ns()) == {"start", "first step", "step", "eval"}


def test_durations_are_counted_by_their_bound() -> None:
    counters = Counters()
    for seconds in (0.01, 0.02, 5000.0):
        counters.observe("save_phase", seconds, phase="write")
    counts = samples(Reading(counts=counters_of(counters)))
    bucket = "keepstep_save_phase_seconds_bucket"
    assert counts[bucket, "phase=write,le=0.01"] == 1
    assert counts[bucket, "phase=write,le=0.03"] == 2
    assert counts[bucket, "phase=write,le=1000.0"] == 2
    assert counts[bucket, "phase=write,le=+Inf"] == 3
    assert counts["keepstep_save_phase_seconds_sum", "phase=write"] == pytest.approx(5000.03)


def test_counts_go_on_when_workers_are_started_again(tmp_path: Path) -> None:
    tally = Tally()
    for incarnation, steps in enumerate((5, 3)):
        directory = tmp_path / str(incarnation)
        directory.mkdir()
        tally.begin(directory, [0, 1])
        write(directory, 0, steps=steps)
        write(directory, 1, steps=0)
        assert tally.read().counts["steps", ()] == (5, 8)[incarnation]
        tally.end()
        tally.end()
        assert tally.read().counts["steps", ()] == (5, 8)[incarnation]
        assert tally.read().ranks == {}


def test_time_without_workers_is_counted_for_all_ranks(tmp_path: Path) -> None:
    tally = Tally()
    down = ("section_ns", (("section", "down"),))
    tally.begin(tmp_path, range(1000))
    assert tally.read().counts[down] == 0
    began = time.monotonic_ns()
    tally.end()
    assert tally.read().counts[down] <= (time.monotonic_ns() - began) * 1000
    tally.begin(tmp_path, range(1000))
    counted = tally.read().counts[down]
    assert 0 < counted == tally.read().counts[down]


def test_work_is_at_risk_as_long_as_somebody_works() -> None:
    name = ("keepstep_work_at_risk_seconds", "")
    since = time.monotonic_ns() - 30 * SECOND
    ranks = {0: Numbers({"at_risk_since_ns": since}), 1: Numbers()}
    assert 30 <= samples(Reading(ranks))[name] < 300
    assert samples(Reading())[name] == 0


def test_known_outcomes_and_kinds_begin_with_nothing() -> None:
    found = samples(Reading())
    assert found["keepstep_saves_total", "outcome=committed"] == 0
    assert found["keepstep_storage_errors_total", "kind=StorageFull"] == 0
    assert found["keepstep_quarantined_checkpoints_total", ""] == 0


def test_a_rank_is_well_until_its_deadline() -> None:
    now = time.monotonic_ns()
    well = Sight(beat=beat("step", since=now, deadline=now + 60 * SECOND))
    late = Sight(beat=beat("save", since=now - 70 * SECOND, deadline=now - 10 * SECOND))
    idle = Sight(beat=beat("", since=now - 70 * SECOND, deadline=0))
    gone = Sight(beat=late.beat, ended_ns=now)
    assert health_of({0: well, 1: idle, 2: gone, 3: Sight()}).is_healthy
    health = health_of({0: well, 1: late})
    assert not health.is_healthy
    first = health.document()["ranks"][0]
    assert (first["rank"], first["section"], first["step"]) == (1, "save", 4)
    assert first["allowed_seconds"] == 60


@pytest.mark.parametrize(
    ("sections", "is_ready"),
    [([], False), (["step", "load"], False), (["step", "eval"], True), (["init"], False)],
)
def test_a_node_is_ready_once_all_ranks_make_steps(sections: list[str], is_ready: bool) -> None:
    sights = {rank: Sight(beat=beat(name)) for rank, name in enumerate(sections)}
    assert health_of(sights).is_ready is is_ready


def test_endpoints() -> None:
    now = time.monotonic_ns()
    sights = {5: Sight(beat=beat("step", since=now, deadline=now + 60 * SECOND))}
    with served(lambda: state(Reading(), health_of(sights))) as url:
        assert "keepstep_tries_allowed 3.0" in fetch(f"{url}/metrics")[1]
        assert fetch(f"{url}/healthz")[0] == 200
        assert fetch(f"{url}/readyz")[0] == 200
        sights[5].beat = beat("eval", since=now, deadline=now)
        code, body = fetch(f"{url}/healthz")
        assert code == 503
        assert json.loads(body)["ranks"][0] | {"lasts_seconds": 0} == {
            "rank": 5,
            "healthy": False,
            "section": "eval",
            "step": 4,
            "lasts_seconds": 0,
            "allowed_seconds": 0.0,
            "ended": False,
        }
        assert fetch(f"{url}/nothing")[0] == 404


def test_a_port_that_is_taken_is_named() -> None:
    with (
        serving(0, state) as port,
        pytest.raises(ConfigError, match=f"--metrics-port {port}: "),
        serving(port, state),
    ):
        pass


def state(reading: Reading = Reading(), health: NodeHealth = NodeHealth(())) -> NodeState:  # noqa: B008
    return NodeState(reading, health, {"hung": 1}, 0, 3)


def samples(reading: Reading) -> dict[tuple[str, str], float]:
    """By name and labels."""
    return {
        (one.name, ",".join(f"{name}={value}" for name, value in one.labels.items())): one.value
        for family in families(state(reading))
        for one in family.samples
    }


def counters_of(counters: Counters):
    from collections import Counter

    return Counter(counters.all())


def write(directory: Path, rank: int, **counts: int) -> None:
    counters = Counters()
    for name, n in counts.items():
        counters.add(name, n)
    meter = Meter(counters)
    meter._path = directory / f"{rank}{NUMBERS_SUFFIX}"
    meter.write()


def beat(section: str, *, since: int = 0, deadline: int = 0) -> Beat:
    return Beat(
        pid=os.getpid(),
        section=section,
        step=4,
        since_ns=since,
        deadline_ns=deadline,
        commits=0,
        committed_step=-1,
        told_ns=0,
        is_starting=False,
    )


@contextmanager
def served(look) -> Iterator[str]:
    with serving(0, look) as port:
        yield f"http://127.0.0.1:{port}"


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            body = reply.read().decode()
            if url.endswith("/metrics"):
                assert list(text_string_to_metric_families(body))
            return reply.status, body
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()
