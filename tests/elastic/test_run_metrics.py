"""The metrics and the health of a node under ``keepstep run``."""

import json
import re
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from launches import LIGHT_WORKER, Launch, launch

from keepstep.launch.run import run


def test_a_stopped_rank_is_named_then_counted(tmp_path: Path) -> None:
    arguments = ["--metrics-port", "0", "--nproc-per-node", "2", LIGHT_WORKER, "8"]
    with launch(tmp_path, *arguments, "commit", "stop@1@0", "wait@0@1") as job:
        job.wait_for(job.log_path.exists, "the log")
        job.wait_for(lambda: "metrics at port" in job.log, "the port")
        job.wait_for(lambda: health(job)[0] == 503, "ill health")
        code, ranks = health(job)
        if code == 503:  # it is killed two seconds later
            ill = [rank for rank in ranks if not rank["healthy"]]
            assert {rank["rank"] for rank in ill} == {1}
            assert ill[0]["section"] == "step"
            assert ill[0]["step"] == 3
        job.wait_for_file("waiting-0")
        assert health(job)[0] == 200
        found = metrics(job)
        assert found['keepstep_restarts_total{cause="was stopped by a signal"}'] == 1
        assert found["keepstep_tries_in_vain"] == 0
        assert found['keepstep_section_seconds_total{section="down"}'] > 0
        job.signal(signal.SIGKILL)


def test_without_the_package_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with launch(tmp_path, "--metrics-port", "0", "--nproc-per-node", "1", LIGHT_WORKER, "1") as ok:
        assert ok.end() == 0
    for name in [*sys.modules]:
        if name.startswith(("prometheus_client", "keepstep.launch.metrics")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with launch(tmp_path, "--metrics-port", "0", "--nproc-per-node", "1", LIGHT_WORKER, "1") as job:
        assert job.end() == 78
        assert "pip install 'keepstep[metrics]'" in job.log


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--metrics-port", port, LIGHT_WORKER]) == 64
    assert f"--metrics-port {port}" in capsys.readouterr().err


def url(job: Launch, path: str) -> str:
    found = re.search(r"metrics at port (\d+)", job.log)
    assert found
    return f"http://127.0.0.1:{found[1]}{path}"


def health(job: Launch) -> tuple[int, list[dict[str, object]]]:
    try:
        with urllib.request.urlopen(url(job, "/healthz"), timeout=30) as reply:
            return reply.status, json.load(reply)["ranks"]
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)["ranks"]


def metrics(job: Launch) -> dict[str, float]:
    with urllib.request.urlopen(url(job, "/metrics"), timeout=30) as reply:
        lines = [line for line in reply.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
