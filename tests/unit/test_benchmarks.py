"""The benchmarks run, every measurement has its row, and claims are judged as they are written."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from benchmarks.claims import CLAIMS, judge
from benchmarks.launching import Launch
from benchmarks.plan import Plan
from benchmarks.results import Results, combine
from benchmarks.scenario import Scenario
from benchmarks.tables import render
from benchmarks.verdicts import Claim

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = Scenario(section="durable", peers=("keepstep", "dcp"), size_mib=512, ranks=2)


def row(peer: str, repetition: int, seconds: float, work: str = "save") -> dict[str, Any]:
    metrics = {"seconds": seconds, "cpu_seconds": 1.0, "written_bytes": 100}
    return {"peer": peer, "work": work, "repetition": repetition, "metrics": metrics}


def state(local_bytes: int) -> dict[str, Any]:
    metrics = {"local_bytes": local_bytes, "tensors": 1}
    return {"peer": "", "work": "state", "repetition": 0, "metrics": metrics}


def results_of(ours: list[float], theirs: list[float]) -> Results:
    rank = [state(10**9)]
    rank += [row("keepstep", number, seconds) for number, seconds in enumerate(ours)]
    rank += [row("dcp", number, seconds) for number, seconds in enumerate(theirs)]
    results = Results()
    results.add(Launch(SCENARIO, rows=[rank, [state(10**9), *rank[1:]]]))
    return results


def test_a_clock_is_as_late_as_the_slowest_rank_and_bytes_add_up() -> None:
    one = {"seconds": 1.0, "cpu_seconds": 2.0, "written_bytes": 100, "to_pinned_gb_per_second": 5}
    two = {"seconds": 3.0, "cpu_seconds": 1.0, "written_bytes": 300, "to_pinned_gb_per_second": 4}
    assert combine([one, two]) == {
        "seconds": 3.0,
        "cpu_seconds": 3.0,
        "written_bytes": 400,
        "to_pinned_gb_per_second": 4,
        "imbalance": 1.5,
    }


def test_the_first_repetition_is_kept_apart_from_the_median() -> None:
    entry = results_of([90.0, 1.0, 5.0, 2.0], [1.0, 1.0]).entry(SCENARIO, "keepstep", "save")
    assert entry is not None
    seconds = entry.metrics["seconds"]
    assert (seconds.median, seconds.first, seconds.count) == (2.0, 90.0, 3)
    assert entry.median("cpu_seconds_per_gb") == pytest.approx(1.0)


def test_a_measurement_that_lacks_a_rank_does_not_count() -> None:
    results = Results()
    results.add(Launch(SCENARIO, rows=[[state(1), row("dcp", 1, 1.0)], [state(1)]]))
    assert results.entries == []


@pytest.mark.parametrize(("ours", "answer"), [(0.4, "pass"), (0.41, "FAIL")])
def test_a_claim_holds_up_to_its_target(ours: float, answer: str) -> None:
    verdicts = {verdict.text: verdict for verdict in judge(results_of([9, ours], [9, 1.0]))}
    verdict = verdicts["Durable save, checksums on: wall time against DCP"]
    assert verdict.answer == answer
    assert verdict.worst is not None
    assert verdict.worst.value == pytest.approx(ours)


def test_the_worst_scenario_decides() -> None:
    values = iter([0.5, 0.9, 0.7])
    found = [(SCENARIO, value) for value in values]
    at_least = Claim("share", "at least", 0.6, lambda _: iter(found)).judge(Results())
    at_most = Claim("ratio", "at most", 0.95, lambda _: iter(found)).judge(Results())
    assert (at_least.answer, at_least.worst and at_least.worst.value) == ("FAIL", 0.5)
    assert (at_most.answer, at_most.worst and at_most.worst.value) == ("pass", 0.9)


def test_what_was_not_measured_is_no_pass() -> None:
    answers = {verdict.answer for verdict in judge(Results())}
    assert answers == {"not measured"}
    assert len(CLAIMS) == len({claim.text for claim in CLAIMS})


def test_the_full_plan_covers_the_cases_that_are_claimed() -> None:
    plan = Plan().scenarios(with_cuda=True)
    changes = {(s.ranks, s.load_ranks) for s in plan if s.section == "reshard"}
    assert changes >= {(4, 2), (2, 4), (4, 1)}
    assert any(s.num_tensors == 10_000 and s.ranks == 4 for s in plan)
    assert any(s.device == "cuda" for s in plan)
    assert {s.size_mib for s in plan if s.section == "durable"} >= {256, 512, 2048, 4096}
    assert all(s.device == "cpu" for s in Plan().scenarios(with_cuda=False))


def test_results_come_back_from_their_json() -> None:
    results = results_of([1.0, 2.0], [1.0, 2.0])
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results
    assert "512 MiB" in render(results)


def benchmark(tmp_path: Path, *options: str) -> Results:
    """Run the command at a size that says nothing about speed; what it wrote."""
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--sizes-mib", "2"]
    command += ["--num-tensors", "100", "--many-tensors", "0", "--repetitions", "1"]
    command += ["--directory", str(tmp_path), "--output", str(output), *options]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "| claim |" in done.stdout
    assert str(tmp_path) not in output.read_text(), "no paths of this machine"
    written = json.loads(output.read_text())
    assert len(written["claims"]) == len(CLAIMS)
    found = Results.from_json(written)
    assert found.problems == []
    return found


def rows_of(found: Results, section: str) -> set[tuple[str, str]]:
    return {(e.peer, e.work) for e in found.entries if e.scenario.section == section}


def test_saves_and_loads_by_as_many_and_by_other_ranks_are_measured(tmp_path: Path) -> None:
    peers = "limit-buffered,keepstep,dcp"
    found = benchmark(tmp_path, "--sections", "durable,slice", "--peers", peers)
    works = ("save", "load cold", "load warm")
    expected = {(peer, work) for peer in peers.split(",") for work in works}
    assert expected <= rows_of(found, "durable")
    assert {(peer, "load warm") for peer in ("keepstep", "dcp")} <= rows_of(found, "slice")
    assert {"cores", "memory_gib", "filesystem", "torch", "load_average_end"} <= set(found.machine)
    assert list(tmp_path.iterdir()) == [tmp_path / "results.json"], "nothing else is left"


def test_asynchronous_saves_and_a_soak_are_measured(tmp_path: Path) -> None:
    # torch 2.11 closes a stager after its first save: none can be kept.
    has_kept_stager = version("torch") >= "2.12"
    stock = "dcp-async-thread" if has_kept_stager else "dcp-async-default"
    found = benchmark(
        tmp_path,
        *("--sections", "background,soak", "--ranks", "1", "--soak-saves", "5"),
        *("--peers", f"limit-memcpy,keepstep,keepstep-async,{stock}"),
    )
    background = rows_of(found, "background")
    for peer in ("limit-memcpy", "keepstep-async", stock):
        assert (peer, "async save") in background
    assert {("keepstep", "soak"), ("keepstep-async", "soak")} <= rows_of(found, "soak")
