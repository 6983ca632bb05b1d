"""The examples do what they say: run, and run again from where they were."""

import subprocess
import sys
import time
from pathlib import Path

from keepstep.commit.catalog import Catalog
from keepstep.storage.local import LocalStorage

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plain_loop_resumes_alone_and_on_two_ranks(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    assert "starts at step 0" in run("examples/plain_loop.py", uri, "60")
    assert "starts at step 60" in run("examples/plain_loop.py", uri, "70")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    told = run(*torchrun, "examples/plain_loop.py", uri, "80")
    assert told.count("starts at step 70") == 2
    assert told.count("ends at step 80") == 2


def test_the_loop_for_gpus_resumes_on_two_ranks(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    uri = str(tmp_path / "run")
    assert run(*torchrun, "examples/fsdp_gpus.py", uri, "20").count("starts at step 0") == 2
    told = run(*torchrun, "examples/fsdp_gpus.py", uri, "25")
    assert told.count("starts at step 20") == 2
    assert told.count("ends at step 25") == 2


def test_the_folder_loop_goes_on_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    scratch, uri = str(tmp_path / "scratch"), str(tmp_path / "run")
    command = [sys.executable, "examples/folder_loop.py", uri, scratch, "1000000"]
    endless = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    give_up = time.monotonic() + 60
    while not list(Path(uri).glob("steps/*/manifest.json")):
        assert time.monotonic() < give_up
        assert endless.poll() is None
        time.sleep(0.02)
    endless.kill()
    endless.wait()
    (newest, *_) = Catalog(LocalStorage(uri)).candidates()
    end = str(newest.step + 40)
    resumed = run("examples/folder_loop.py", uri, scratch, end)
    assert f"starts at step {newest.step}" in resumed
    whole = run("examples/folder_loop.py", str(tmp_path / "whole"), str(tmp_path / "other"), end)
    assert resumed.splitlines()[-1] == whole.splitlines()[-1]
