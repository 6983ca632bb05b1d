"""What is wrong with the store shows before training starts, in a sentence that has the remedy."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_training import committed_steps, store_of

import keepstep
from keepstep.errors import (
    ConfigError,
    ExitCode,
    KeepstepError,
    StorageDenied,
    StorageUnavailable,
    StoreNotFound,
    exit_code_of,
)
from keepstep.storage.s3_client import S3Client
from keepstep.testing.fault_proxy import FaultProxy
from keepstep.testing.faults import EXPIRED_TOKEN, Answer
from keepstep.testing.s3_server import S3Server


def refusal(uri: str, **options: Any) -> KeepstepError:
    """What a session says of a store that it cannot use."""
    with pytest.raises(KeepstepError) as caught:
        keepstep.open(uri, retry_seconds=1.0, **options)
    message = str(caught.value)
    assert "\n" not in message
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert os.environ.get(name, "?") not in message
    return caught.value


def assert_empty(server: S3Server, uri: str) -> None:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    assert "Contents" not in server.client().list_objects_v2(Bucket=bucket, Prefix=prefix)


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("AWS_SECRET_ACCESS_KEY", "correct AWS_SECRET_ACCESS_KEY or the profile"),
        ("AWS_ACCESS_KEY_ID", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE"),
    ],
)
def test_wrong_keys_are_told_apart(
    s3_server: S3Server,
    s3_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    remedy: str,
) -> None:
    monkeypatch.setenv(variable, "wrong")
    error = refusal(s3_uri)
    assert isinstance(error, StorageDenied)
    assert remedy in str(error)
    assert exit_code_of(error) == ExitCode.DENIED
    assert_empty(s3_server, s3_uri)


def test_no_credentials_at_all(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    error = refusal(s3_uri)
    assert isinstance(error, StorageDenied)
    assert "no complete credentials were found; set AWS_ACCESS_KEY_ID" in str(error)


def test_a_profile_that_does_not_exist(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    error = refusal(s3_uri)
    assert isinstance(error, StorageDenied)
    assert "profile (nobody) could not be found; correct AWS_PROFILE" in str(error)


def test_a_missing_bucket(s3_uri: str) -> None:
    bucket = s3_uri.partition("//")[2].partition("/")[0]
    error = refusal(s3_uri.replace(bucket, "no-such-bucket"))
    assert isinstance(error, StoreNotFound)
    assert "there is no such bucket; create it, or correct the URI" in str(error)
    assert exit_code_of(error) == ExitCode.CONFIG


def test_an_expired_token(s3_server: S3Server, s3_uri: str, proxy: FaultProxy) -> None:
    proxy.inject(EXPIRED_TOKEN, times=None)
    error = refusal(s3_uri)
    assert isinstance(error, StorageDenied)
    assert "fetch new credentials and start again (ExpiredToken)" in str(error)
    assert len(proxy.requests) <= 4, "each is asked twice: the token may have been replaced"
    assert_empty(s3_server, s3_uri)


def test_an_identity_that_may_only_read(
    s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environ("reader").items():
        monkeypatch.setenv(name, value)
    error = refusal(s3_uri)
    assert isinstance(error, StorageDenied)
    assert "grant s3:PutObject there to these credentials" in str(error)
    assert_empty(s3_server, s3_uri)


def test_an_endpoint_where_nobody_listens(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        error = refusal(s3_uri)
    assert isinstance(error, StorageUnavailable)
    assert "check the network and the endpoint (AWS_ENDPOINT_URL)" in str(error)
    assert exit_code_of(error) == ExitCode.STORAGE_UNAVAILABLE


def test_an_endpoint_that_is_no_address(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost 9000")
    error = refusal(s3_uri)
    assert isinstance(error, StoreNotFound)
    assert "localhost 9000" in str(error)
    assert "AWS_ENDPOINT_URL" in str(error)


def ignore_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store behave as those do that know nothing of conditional writes."""
    once = S3Client.once

    def heedless(client: S3Client, operation: str, **parameters: Any) -> Any:
        parameters.pop("IfNoneMatch", None)
        return once(client, operation, **parameters)

    monkeypatch.setattr(S3Client, "once", heedless)


def test_a_store_that_ignores_conditions_needs_a_word_of_a_person(
    s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignore_conditions(monkeypatch)
    error = refusal(s3_uri)
    assert type(error) is ConfigError
    assert "set storage.single_writer=true" in str(error)
    assert exit_code_of(error) == ExitCode.CONFIG
    assert_empty(s3_server, s3_uri)
    with keepstep.open(s3_uri, single_writer=True) as session:
        session.track(layer=torch.nn.Linear(2, 2)).restore()
        session.tick()
    assert committed_steps(store_of(s3_uri)) == [1]


def test_a_store_that_refuses_conditions_needs_it_as_well(
    s3_server: S3Server, s3_uri: str, proxy: FaultProxy
) -> None:
    rule = proxy.inject(Answer(501, "NotImplemented"), header="if-none-match", times=None)
    error = refusal(s3_uri)
    assert type(error) is ConfigError
    assert "set storage.single_writer=true" in str(error)
    assert rule.hits == 1
    assert_empty(s3_server, s3_uri)


@pytest.mark.parametrize(
    ("environ", "bucket", "code", "remedy"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "", ExitCode.DENIED, "AWS_SECRET_ACCESS_KEY"),
        pytest.param(
            {},
            "no-such-bucket",
            ExitCode.CONFIG,
            "there is no such bucket; create it",
            marks=pytest.mark.long,
        ),
    ],
    ids=["wrong secret", "missing bucket"],
)
def test_a_job_ends_before_it_trains(
    s3_server: S3Server,
    s3_uri: str,
    tmp_path: Path,
    environ: dict[str, str],
    bucket: str,
    code: ExitCode,
    remedy: str,
) -> None:
    uri = f"s3://{bucket}/run" if bucket else s3_uri
    job = subprocess.run(
        [sys.executable, "-m", "keepstep.launch", "--uri", uri, "--train.steps", "3"],
        cwd=tmp_path,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert job.returncode == code, job.stderr
    (sentence,) = [line for line in job.stderr.splitlines() if "ERROR" in line]
    assert remedy in sentence
    assert "Traceback" not in job.stderr
    assert "step=" not in job.stderr
    assert_empty(s3_server, s3_uri)
