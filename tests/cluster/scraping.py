"""A real Prometheus in the network of the pods, told of each that runs, as by the cluster's API."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from prometheus import dashboard_queries, rules

from keepstep.testing.cluster import Cluster

_METRICS_PORT = 9401
_PORT = 9090
_ASK = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=30).read().decode())"
_RANGE_SECONDS = 300


class Scraper:
    """What one Prometheus has seen."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that are the answer."""
        url = f"http://127.0.0.1:{_PORT}/api/v1/query?{urlencode({'query': query})}"
        words = self._cluster.command([sys.executable, "-c", _ASK, url])
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found: list[dict[str, Any]] = json.loads(done.stdout)["data"]["result"]
        return found

    def panels_without_data(self) -> list[str]:
        """Of the dashboard, each with its query."""
        return [
            f"{title}: {query}"
            for title, query in dashboard_queries(range_seconds=_RANGE_SECONDS)
            if not any(isfinite(float(series["value"][1])) for series in self.ask(query))
        ]


@contextmanager
def scraped(cluster: Cluster, job: str, directory: Path) -> Iterator[Scraper]:
    """Scrape all pods of a job, each second."""
    directory.mkdir()
    words = cluster.command(_prometheus(directory))
    is_over = threading.Event()
    finder = threading.Thread(target=_find, args=(cluster, job, directory, is_over))
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
        finder.start()
        try:
            yield Scraper(cluster)
        finally:
            is_over.set()
            finder.join()
            server.kill()
            server.wait()


def _prometheus(directory: Path) -> list[str]:
    (directory / "rules.yaml").write_text(rules())
    found = {"files": [str(directory / "targets.json")], "refresh_interval": "1s"}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(directory / "rules.yaml")],
        "scrape_configs": [{"job_name": "keepstep", "file_sd_configs": [found]}],
    }
    (directory / "prometheus.yaml").write_text(json.dumps(config))
    return [
        "prometheus",
        f"--config.file={directory / 'prometheus.yaml'}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{_PORT}",
    ]


def _find(cluster: Cluster, job: str, directory: Path, is_over: threading.Event) -> None:
    while not is_over.wait(1.0):
        pods = [pod for pod in cluster.pods_of(job) if pod.phase == "Running"]
        targets = [
            {
                "targets": [f"{pod.identity.address}:{_METRICS_PORT}"],
                "labels": {"pod": pod.name},
            }
            for pod in pods
        ]
        draft = directory / "targets.draft"
        draft.write_text(json.dumps(targets))
        draft.rename(directory / "targets.json")
