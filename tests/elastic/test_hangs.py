"""Ranks that hang: found, named, ended and replaced."""

from pathlib import Path

import pytest
from launches import LIGHT_WORKER, launch

from keepstep.errors import ExitCode

pytestmark = pytest.mark.drill


@pytest.mark.parametrize(
    "deed",
    ["stop", *(pytest.param(deed, marks=pytest.mark.long) for deed in ("hold", "loop"))],
)
def test_a_rank_that_hangs_is_named_and_the_job_goes_on(tmp_path: Path, deed: str) -> None:
    deeds = [f"{deed}@1@0", "wait@0@0"]
    with launch(tmp_path, "--nproc-per-node", "2", LIGHT_WORKER, "5", *deeds) as job:
        assert job.end() == ExitCode.OK, job.log
        assert job.starts == 2
        failure = job.failure
    assert failure["first"]["rank"] == 1
    assert failure["first"]["is_stopped"] == (deed == "stop")
    assert (failure["first"]["section"], failure["first"]["step"]) == ("step", 3)
    assert [rank["collateral"] for rank in failure["ranks"]] == [True, False]
    how = "was stopped by a signal" if deed == "stop" else "hung"
    assert f"rank 1 {how} in section 'step', after step 3" in job.log
    if deed != "stop":  # a stopped process writes nothing any more
        assert "in do\n" in job.log.partition("was here:")[2]


@pytest.mark.long
def test_a_job_that_hangs_without_restarts_left_ends_with_the_code_for_it(tmp_path: Path) -> None:
    with launch(tmp_path, "--max-restarts", "0", LIGHT_WORKER, "5", "hold") as job:
        assert job.end() == ExitCode.HUNG, job.log


_COLLECTIVE = """
import os, sys, time
import torch, torch.distributed as dist
from keepstep.elastic.watchdog import WatchdogPolicy, installed
rank, restart = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), 2, False)
store = dist.PrefixStore(str(restart), store)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
watchdog = installed()
watchdog.policy = WatchdogPolicy(floor_seconds=1.0, unlearned_seconds=60)
watchdog.begin("first step")
for step in range(1, 8):
    dist.all_reduce(torch.ones(4))
    watchdog.tick(step)
    if step == 4 and rank == 1 and restart == 0:
        while True:
            time.sleep(0.01)
watchdog.rest()
"""


@pytest.mark.long
def test_who_waits_in_a_collective_is_collateral(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(_COLLECTIVE)
    with launch(tmp_path, "--nproc-per-node", "2", "worker.py") as job:
        assert job.end() == ExitCode.OK, job.log
        ranks = job.failure["ranks"]
    assert [rank["is_waiting"] for rank in ranks] == [True, False]
    assert [rank["collateral"] for rank in ranks] == [True, False]
