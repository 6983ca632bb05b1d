"""Shared by the unit tests: a run on disk, and the command line."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from run_on_disk import RunOnDisk

from keepstep.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> RunOnDisk:
    """Three committed steps of one generation."""
    run = RunOnDisk(tmp_path / "run")
    run.start()
    for number in (1, 2, 3):
        run.save(10 * number, age=timedelta(hours=5 - number))
    return run


Keepstep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def keepstep(capsys: pytest.CaptureFixture[str]) -> Keepstep:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
