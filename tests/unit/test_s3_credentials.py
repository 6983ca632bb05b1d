"""Where an S3 client's settings and credentials come from, and what it says when they fail."""

import logging
import traceback
from pathlib import Path

import fsspec.config
import pytest
from botocore.config import Config
from s3_answers import ATTEMPTS, Asked, open_s3, serving, succeed

from keepstep.errors import StorageDenied, StorageError
from keepstep.observability.counters import COUNTERS
from keepstep.storage.retrying import RETRIES
from keepstep.storage.s3_session import connect

ROLE = (
    b'{"Code": "Success", "AccessKeyId": "roles", "SecretAccessKey": "s", "Token": "t",'
    b' "Expiration": "2099-01-01T00:00:00Z"}'
)


def write_credentials(path: Path, access_key: str) -> None:
    path.write_text(f"[default]\naws_access_key_id={access_key}\naws_secret_access_key=s\n")


def forget_keys(aws: pytest.MonkeyPatch) -> None:
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("environ", "region"),
    [
        ({"AWS_REGION": "eu-north-1"}, "eu-north-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        ({"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "eu-west-1"}, "eu-north-1"),
        ({}, "ca-central-1"),
    ],
)
def test_the_region_is_that_of_either_variable_or_of_the_file(
    environ: dict[str, str], region: str, aws: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aws.delenv("AWS_DEFAULT_REGION")
    (tmp_path / "config").write_text("[default]\nregion=ca-central-1\n")
    for name, value in environ.items():
        aws.setenv(name, value)
    assert connect(Config()).client.meta.region_name == region


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "ExpiredToken"])
def test_credentials_that_were_replaced_are_read_anew_within_the_request(
    code: str, aws: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forget_keys(aws)
    write_credentials(tmp_path / "credentials", "old")

    def answer(asked: Asked) -> None:
        if asked.access_key() == "old":
            write_credentials(tmp_path / "credentials", "new")
            asked.refuse(403, code)
        else:
            succeed(asked)

    with serving(answer) as (endpoint, log):
        before = COUNTERS.total(RETRIES)
        storage = open_s3(endpoint, aws)
        storage.put("a", b"x")
        storage.put("b", b"x")
    assert [request.access_key for request in log] == ["old", "new", "new"]
    assert COUNTERS.total(RETRIES) - before == 1


def test_credentials_that_stay_wrong_are_tried_twice_and_later_again(
    aws: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forget_keys(aws)
    write_credentials(tmp_path / "credentials", "wrong")

    def answer(asked: Asked) -> None:
        if asked.access_key() == "wrong":
            asked.refuse(403, "InvalidAccessKeyId")
        else:
            succeed(asked)

    with serving(answer) as (endpoint, log):
        storage = open_s3(endpoint, aws)
        with pytest.raises(StorageDenied, match="does not know the access key"):
            storage.put("a", b"x")
        assert len(log) == 2
        write_credentials(tmp_path / "credentials", "right")
        storage.put("a", b"x")


def test_a_metadata_service_that_is_busy_is_asked_again(aws: pytest.MonkeyPatch) -> None:
    forget_keys(aws)
    aws.setenv("AWS_EC2_METADATA_DISABLED", "false")

    def answer(asked: Asked) -> None:
        if len(log) <= 3:
            asked.reply(503)
        else:
            asked.reply(200, b"role" if asked.path.endswith("credentials/") else ROLE)

    with serving(answer) as (endpoint, log):
        aws.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
        assert connect(Config()).provider == "iam-role"


def test_more_patience_with_the_metadata_service_can_be_asked_for(
    aws: pytest.MonkeyPatch,
) -> None:
    forget_keys(aws)
    aws.setenv("AWS_EC2_METADATA_DISABLED", "false")
    aws.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "9")

    def answer(asked: Asked) -> None:
        if len(log) <= 8:
            asked.reply(503)
        else:
            asked.reply(200, b"role" if asked.path.endswith("credentials/") else ROLE)

    with serving(answer) as (endpoint, log):
        aws.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
        assert connect(Config()).provider == "iam-role"


def test_a_role_that_comes_late_is_found_by_the_next_request(aws: pytest.MonkeyPatch) -> None:
    forget_keys(aws)
    aws.setenv("AWS_EC2_METADATA_DISABLED", "false")
    is_down = True

    def answer(asked: Asked) -> None:
        if is_down:
            asked.reply(503)
        else:
            asked.reply(200, b"role" if asked.path.endswith("credentials/") else ROLE)

    with serving(answer) as (metadata, _), serving(succeed) as (endpoint, log):
        aws.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)
        storage = open_s3(endpoint, aws)
        with pytest.raises(StorageDenied, match="no complete credentials were found"):
            storage.put("a", b"x")
        is_down = False
        storage.put("a", b"x")
    assert [request.access_key for request in log] == ["roles"]


def use_process(tmp_path: Path, aws: pytest.MonkeyPatch, script: str) -> Path:
    """Credentials by a script; returns a file with a line for each of its runs."""
    forget_keys(aws)
    runs = tmp_path / "runs"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho run >> {runs}\n{script}\n")
    program.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\ncredential_process={program}\n")
    return runs


def test_expired_credentials_of_a_process_are_asked_for_again_and_then_refused(
    aws: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = use_process(
        tmp_path,
        aws,
        """echo '{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "t","""
        """ "Expiration": "2020-01-01T00:00:00Z"}'""",
    )
    with serving(succeed) as (endpoint, log):
        with pytest.raises(StorageDenied, match="credential_process"):
            open_s3(endpoint, aws).put("a", b"x")
        assert log == []
    assert len(runs.read_text().splitlines()) == 1 + ATTEMPTS


@pytest.mark.parametrize("script", ["echo TOKEN=hunter2 >&2; exit 1", "echo '{hunter2'"])
def test_what_a_failing_process_says_is_not_repeated(
    script: str,
    aws: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = use_process(tmp_path, aws, script)
    caplog.set_level(logging.DEBUG, logger="keepstep")
    with serving(succeed) as (endpoint, _), pytest.raises(StorageDenied) as caught:
        open_s3(endpoint, aws).put("a", b"x")
    assert "no credentials came from" in str(caught.value)
    assert "hunter2" not in shown(caught.value) + caplog.text
    assert len(runs.read_text().splitlines()) == ATTEMPTS, "it may work a moment later"


def test_a_process_that_is_not_there_is_named(aws: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_keys(aws)
    (tmp_path / "config").write_text("[default]\ncredential_process=/no/such/program\n")
    with (
        serving(succeed) as (endpoint, _),
        pytest.raises(StorageDenied, match=r"no credentials came from .*/no/such/program"),
    ):
        open_s3(endpoint, aws).put("a", b"x")


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://user:hunter2@127.0.0.1:1/",
        "http://user:hun/hunter2@127.0.0.1:1/",
        "http://user:hunter2@[127/",
        "user:hunter2@://127.0.0.1",
    ],
)
def test_a_password_in_the_endpoint_is_not_repeated(endpoint: str, aws: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError) as caught:
        open_s3(endpoint, aws).put("a", b"x")
    assert "AWS_ENDPOINT_URL" in str(caught.value)
    assert "hunter2" not in shown(caught.value)


def test_fsspecs_configuration_comes_before_the_variables(aws: pytest.MonkeyPatch) -> None:
    with serving(succeed) as (endpoint, log):
        aws.setitem(fsspec.config.conf, "s3", {"key": "k", "secret": "s", "endpoint_url": endpoint})
        open_s3("http://127.0.0.1:1", aws).put("a", b"x")
    assert [request.access_key for request in log] == ["k"]
