"""Starting the ranks of a scenario and collecting what they write."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from benchmarks.peers.remote import BUCKET
from benchmarks.scenario import Scenario
from keepstep.testing.s3_server import S3Server

_REPOSITORY = Path(__file__).resolve().parent.parent
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 30.0
"""For the other ranks, once one has failed."""

Job = Literal["measure", "keep", "load"]


@dataclass(slots=True)
class Launch:
    """What came out of one scenario."""

    scenario: Scenario
    rows: list[list[dict[str, Any]]] = field(default_factory=list)
    """By rank, as they were written."""
    failure: str | None = None
    """Why the processes did not end well; what they had measured by then is in the rows."""


def launch(scenario: Scenario, directory: Path, *, timeout_seconds: float) -> Launch:
    """Run a scenario in a scratch directory below the given one, which is gone afterwards."""
    result = Launch(scenario)
    with (
        TemporaryDirectory(dir=directory, prefix="scenario-", ignore_cleanup_errors=True) as made,
        _server(scenario, Path(made)) as server_environment,
    ):
        scratch = Path(made)
        jobs: list[tuple[Job, int]] = [("measure", scenario.ranks)]
        if scenario.load_ranks is not None:
            jobs = [("keep", scenario.ranks), ("load", scenario.load_ranks)]
        for job, ranks in jobs:
            result.rows, result.failure = _run_job(
                scenario, job, ranks, scratch, server_environment, timeout_seconds=timeout_seconds
            )
            if result.failure:
                break
    return result


@contextlib.contextmanager
def _server(scenario: Scenario, scratch: Path) -> Iterator[Mapping[str, str]]:
    """An S3 server for those who need one; what its clients find in their environment."""
    if scenario.section != "remote":
        yield {}
        return
    with S3Server(scratch / "s3") as server:
        server.create_bucket(BUCKET)
        yield server.environ()


def _run_job(
    scenario: Scenario,
    job: Job,
    ranks: int,
    scratch: Path,
    environment: Mapping[str, str],
    *,
    timeout_seconds: float,
) -> tuple[list[list[dict[str, Any]]], str | None]:
    reports = scratch / f"rows-{job}"
    data = scratch / "data"
    reports.mkdir()
    data.mkdir(exist_ok=True)
    argument = json.dumps(
        {
            "scenario": scenario.to_json(),
            "work": job,
            "rows": str(reports),
            "directory": str(data),
        }
    )
    port = _free_port()
    processes = [_start(rank, ranks, port, argument, reports, environment) for rank in range(ranks)]
    try:
        failure = _wait(processes, reports, timeout_seconds)
    finally:
        for process in processes:
            _end(process)
    return [_read_rows(reports, rank) for rank in range(ranks)], failure


def _start(
    rank: int,
    ranks: int,
    port: int,
    argument: str,
    reports: Path,
    extra: Mapping[str, str],
) -> "subprocess.Popen[bytes]":
    environment = (
        os.environ
        | extra
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": reports.parent.name,  # dlrover names its sockets by it
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
    )
    with _log(reports, rank).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", argument],
            cwd=_REPOSITORY,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # what a peer starts ends with it
        )


def _wait(
    processes: "list[subprocess.Popen[bytes]]", reports: Path, timeout_seconds: float
) -> str | None:
    """Until all have ended well, or one has not. The reason, if so."""
    give_up = time.monotonic() + timeout_seconds
    failed: int | None = None
    while any(process.poll() is None for process in processes):
        if time.monotonic() > give_up:
            if failed is None:
                return f"did not end within {timeout_seconds:.0f} s"
            break
        codes = [process.poll() for process in processes]
        if failed is None and any(codes):
            failed = next(rank for rank, code in enumerate(codes) if code)
            give_up = min(give_up, time.monotonic() + _GRACE_SECONDS)
        time.sleep(_POLL_SECONDS)
    codes = [process.poll() for process in processes]
    failed = next((rank for rank, code in enumerate(codes) if code), None)
    if failed is None:
        return None
    return f"rank {failed} exited with {codes[failed]}: {_last_line(reports, failed)}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_rows(reports: Path, rank: int) -> list[dict[str, Any]]:
    file = reports / f"rank-{rank}.jsonl"
    if not file.exists():
        return []
    # A killed rank may leave half a line.
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in lines]


def _last_line(reports: Path, rank: int) -> str:
    lines = _log(reports, rank).read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _log(reports: Path, rank: int) -> Path:
    return reports / f"rank-{rank}.log"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
