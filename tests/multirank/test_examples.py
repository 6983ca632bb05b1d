"""The examples do what they say: run, and run again from where they were."""

import subprocess
import sys
from pathlib import Path

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
