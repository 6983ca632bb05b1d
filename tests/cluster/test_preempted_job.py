"""The rendered manifests at work: a job that loses nodes, its store and a rank, and completes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus import needs_prometheus

from cluster.rendered import STORE, TRAINER, add_s3_secret, render, set_grace
from cluster.scraping import Scraper, scraped
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import LEDGER
from keepstep.commit.lineage import read_generation
from keepstep.drills.evidence import Evidence
from keepstep.drills.history import tell
from keepstep.drills.judges.work import same_bits
from keepstep.drills.remains import read_remains
from keepstep.errors import ExitCode
from keepstep.observability.ledger import read_ledger
from keepstep.storage.base import Storage
from keepstep.storage.opening import open_storage
from keepstep.testing.cluster import Cluster, Times
from keepstep.testing.cluster.manifests import set_environ
from keepstep.testing.cluster.pod import Pod
from keepstep.testing.networks import can_use_namespaces
from keepstep.testing.s3_server import S3Server

pytestmark = [
    pytest.mark.drill,
    pytest.mark.long,
    pytest.mark.timeout(1500),
    needs_prometheus,
    pytest.mark.skipif(
        not can_use_namespaces(), reason="pods in namespaces need root and iproute2"
    ),
]

_BUCKET = "keepstep"
_URI = f"s3://{_BUCKET}/main"
_KILLED_IN_SAVE = 100
"""A step whose first save does not live to be committed."""
_STEPS = 400
_PACE_SECONDS = 0.6
"""Added to later steps, so that faults do not come after the end on a quick machine."""
_WAIT_SECONDS = 400


class Run:
    """The cluster, and what its run has left in the bucket."""

    def __init__(self, cluster: Cluster, storage: Storage) -> None:
        self.cluster = cluster
        self.storage = storage

    def committed_step(self) -> int:
        found = Catalog(self.storage).candidates() if self._is_there() else []
        return max((checkpoint.step for checkpoint in found), default=0)

    def world_sizes(self) -> dict[int, int]:
        """By generation."""
        if not self._is_there():
            return {}
        numbers = Catalog(self.storage).generations()
        return {n: read_generation(self.storage, n).world_size for n in numbers}

    def events(self, kind: str) -> list[dict[str, Any]]:
        logs = [read_ledger(self.storage.get(info.key)) for info in self.storage.list(LEDGER)]
        return [event for log in logs for event in log if event["event"] == kind]

    def pod(self, index: int) -> Pod:
        return self.cluster.pod(TRAINER, index)

    def wait_for_commit(self, step: int) -> None:
        self.cluster.wait_until(
            lambda: self.committed_step() >= step,
            f"a commit of step {step}",
            _WAIT_SECONDS,
            every_seconds=0.5,
        )

    def wait_for_world(self, size: int, *, after: int) -> int:
        """The first generation after that one with so many nodes."""

        def found() -> list[int]:
            return [n for n, world in self.world_sizes().items() if n > after and world == size]

        self.cluster.wait_until(
            found,
            f"a world of {size} after generation {after}",
            _WAIT_SECONDS,
            every_seconds=0.5,
        )
        return found()[0]

    def wait_for_replacement(self, pod: Pod) -> None:
        index = pod.identity.index
        self.cluster.wait_until(
            lambda: self.pod(index or 0) is not pod and self.pod(index or 0).phase == "Running",
            f"another pod for index {index}",
            _WAIT_SECONDS,
        )

    def _is_there(self) -> bool:
        return any(True for _ in self.storage.list("generations/"))


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server(tmp_path / "s3") as server:
        server.create_bucket(_BUCKET)
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def run(tmp_path: Path, s3: S3Server) -> Iterator[Run]:
    """The overlay ``s3`` with its server, and 15 s of grace as on GKE's spot nodes."""
    manifests = render("overlays/s3")
    add_s3_secret(manifests, s3.environ())
    set_grace(manifests, 15, 12)
    set_environ(
        manifests.container("Job", TRAINER), KEEPSTEP_FAILPOINTS=_failpoints(), OMP_NUM_THREADS="1"
    )
    with Cluster(manifests, tmp_path / "cluster", times=Times(seconds_scale=0.1)) as cluster:
        cluster.expose((s3.host, s3.port), "s3.storage.svc", 8333)
        yield Run(cluster, open_storage(_URI))


@pytest.fixture
def scraper(run: Run, tmp_path: Path) -> Iterator[Scraper]:
    with scraped(run.cluster, TRAINER, tmp_path / "prometheus") as found:
        yield found


def test_a_job_that_loses_nodes_its_store_and_a_rank_completes_with_the_same_bits(
    run: Run, scraper: Scraper, tmp_path: Path
) -> None:
    cluster = run.cluster
    first = run.wait_for_world(4, after=0)
    run.wait_for_commit(_KILLED_IN_SAVE)  # not at the first attempt
    restarted = run.wait_for_world(4, after=first)

    preempted = [run.pod(1), run.pod(2)]
    for pod in preempted:
        cluster.preempt(cluster.node_of(pod), grace_seconds=15)
    for pod in preempted:
        run.wait_for_replacement(pod)
    whole = run.wait_for_world(4, after=restarted)

    old_store = cluster.pod(STORE)
    cluster.evict(old_store)
    cluster.wait_until(
        lambda: cluster.pod(STORE) is not old_store and cluster.pod(STORE).is_ready,
        "the store, somewhere else",
        _WAIT_SECONDS,
    )
    assert max(run.world_sizes()) == whole, "training goes on without the store"

    vanished = run.pod(3)
    cluster.power_off(cluster.node_of(vanished))
    smaller = run.wait_for_world(3, after=whole)
    run.wait_for_replacement(vanished)
    run.wait_for_world(4, after=smaller)
    run.wait_for_commit(run.committed_step() + 1)
    cluster.wait_until(
        lambda: not scraper.panels_without_data(),
        "data on every panel",
        _WAIT_SECONDS,
        every_seconds=2,
    )
    committed = scraper.ask("max(keepstep_last_committed_step)")
    print("Prometheus saw a commit of step", committed[0]["value"][1])
    assert cluster.wait_for_job(TRAINER, _WAIT_SECONDS) == "Complete", cluster.report()

    _check_what_was_charged(run, preempted, vanished)
    _check_last_words(run, preempted)
    history = tell(read_remains(run.storage))
    reference = tell(read_remains(_reference(tmp_path)))
    print(same_bits(Evidence(history=history, reference=reference)))
    print(_lost_work(run))


def _check_what_was_charged(run: Run, preempted: list[Pod], vanished: Pod) -> None:
    status = run.cluster.job_status(TRAINER)
    assert status.failed == 0, run.cluster.report()
    assert not +status.counted
    assert not status.failed_indexes
    assert dict(+status.ignored) == {1: 1, 2: 1, 3: 1}
    by_name = {pod.name: verdict for pod, verdict in status.verdicts}
    for pod in (*preempted, vanished):
        assert by_name[pod.name].action == "Ignore"
        assert "DisruptionTarget" in pod.conditions
    assert [pod.facts.exit_codes["trainer"] for pod in preempted] == [ExitCode.PREEMPTED] * 2
    assert len(run.cluster.pods_of(STORE)) == 2
    logs = "".join(run.cluster.log(pod) for pod in run.cluster.pods_of(TRAINER))
    # Of all starts only that after the kill was charged to a launcher, and it was not in vain.
    assert re.findall(r"restarting; (\d+) of \d+ tries", logs) == ["0"]
    causes = [event["cause"] for event in run.events("generation") if event["rank"] == 0]
    print("causes of starts, as rank 0 knows them:", causes)


def _check_last_words(run: Run, preempted: list[Pod]) -> None:
    for pod in preempted:
        text = run.cluster.describe(pod)
        print(text)
        assert re.search(rf"last commit: step \d+ of {_URI}", text)
        assert "exit code: 85" in text
        assert f"Exit Code:    {ExitCode.PREEMPTED:d}" in text
        assert "TerminationByKubelet" in text


def _lost_work(run: Run) -> str:
    pattern = re.compile(r"(\d+) steps, (\d+) samples, ([\d.]+) s to redo")
    logs = [run.cluster.log(pod) for pod in run.cluster.pods_of(TRAINER)]
    found = [match.groups() for log in logs for match in pattern.finditer(log)]
    steps, samples, seconds = (sum(map(float, column)) for column in zip(*found, strict=True))
    return (
        f"lost work: {steps:g} steps, {samples:g} samples, {seconds:.1f} s in {len(found)} starts"
    )


def _failpoints() -> str:
    killed = f"write.middle=kill@rank:1@step:{_KILLED_IN_SAVE}"
    paced = range(_KILLED_IN_SAVE, _STEPS - 50)
    pace = (f"step.after=sleep:{_PACE_SECONDS}@rank:0@step:{n}@restart:any" for n in paced)
    return ";".join([killed, *pace])


def _reference(directory: Path) -> Storage:
    """The same recipe in one process, without a fault."""
    recipe = directory / "recipe.toml"
    manifests = render("base")
    (config,) = [c for c in manifests.of("ConfigMap") if "recipe.toml" in c["data"]]
    recipe.write_text(config["data"]["recipe.toml"])
    uri = directory / "reference"
    words = [sys.executable, "-m", "keepstep.launch", str(recipe), "--uri", str(uri)]
    words += ["--data.path", str(directory / "data")]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return open_storage(str(uri))
