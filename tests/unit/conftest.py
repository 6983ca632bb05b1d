"""Shared by the unit tests: a run on disk, the command line, and the settings of S3."""

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


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No settings but a test's own, and files for them."""
    for name in ("REGION", "PROFILE", "SESSION_TOKEN", "CA_BUNDLE", "ENDPOINT_URL_S3"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch
