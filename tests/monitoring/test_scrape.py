"""A real Prometheus scrapes a real job, one of whose ranks is killed; every panel has data."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
from prometheus import ROOT, dashboard_queries, needs_prometheus, rules

LONGEST_SECONDS = 180

pytestmark = [pytest.mark.long, pytest.mark.drill, needs_prometheus]


def test_every_panel_of_the_dashboard_has_data(tmp_path: Path) -> None:
    metrics_port, prometheus_port = free_port(), free_port()
    with (
        started(prometheus(tmp_path, prometheus_port, metrics_port), tmp_path / "prometheus.log"),
        started(job(tmp_path, metrics_port), tmp_path / "job.log", cwd=tmp_path) as launcher,
    ):

        def number(query: str) -> float:
            found = ask(prometheus_port, query)
            return float(found[0]["value"][1]) if found else -1.0

        wait_for(lambda: number("max(keepstep_last_committed_step)") >= 20, tmp_path)
        os.kill(worker_of(launcher.pid), signal.SIGKILL)
        wait_for(lambda: number("max(keepstep_generation)") == 2, tmp_path)
        killed_at = number("max(keepstep_last_committed_step)")
        wait_for(lambda: number("max(keepstep_last_committed_step)") >= killed_at + 50, tmp_path)

        empty = [
            f"{title}: {query}"
            for title, query in dashboard_queries(range_seconds=LONGEST_SECONDS)
            if not any(isfinite(float(s["value"][1])) for s in ask(prometheus_port, query))
        ]
        assert empty == []
        assert number('sum(keepstep_restarts_total{cause="was ended by SIGKILL"})') == 1
        assert number("sum(keepstep_lost_steps_total)") >= 0
        assert number("sum(keepstep_storage_errors_total)") == 0
        assert number("count(ALERTS) or vector(0)") == 0
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(LONGEST_SECONDS) == 85


def prometheus(directory: Path, port: int, metrics_port: int) -> list[str]:
    """The command that starts one, with the alert rules, looking every second."""
    (directory / "rules.yaml").write_text(rules())
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(directory / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "keepstep",
                "static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"]}],
            }
        ],
    }
    (directory / "prometheus.yaml").write_text(json.dumps(config))
    return [
        "prometheus",
        f"--config.file={directory / 'prometheus.yaml'}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]


def job(directory: Path, metrics_port: int) -> list[str]:
    command = "import sys; from keepstep.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return [
        *(sys.executable, "-c", command, "run", "--nproc-per-node", "2"),
        *("--metrics-port", str(metrics_port), "--log-dir", str(directory / "logs")),
        *("-m", "keepstep.launch", str(ROOT / "launch" / "recipes" / "tiny.toml")),
        *("--train.steps", "100000", "--checkpoint.keep", "last=2"),
    ]


@contextmanager
def started(
    command: list[str], log: Path, *, cwd: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=cwd)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def worker_of(launcher: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(
        int(pid)
        for pid in children
        if b"keepstep.launch.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def ask(port: int, query: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            found: list[dict[str, Any]] = json.load(reply)["data"]["result"]
            return found
    except OSError:
        return []


def wait_for(condition: Callable[[], bool], directory: Path) -> None:
    give_up = time.monotonic() + LONGEST_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            pytest.fail(re.sub("^", "  ", (directory / "job.log").read_text()[-4000:]))
        time.sleep(0.5)
