"""A real S3 server for all tests, a fresh prefix for each, and a proxy that spoils replies."""

import os
import secrets
from collections.abc import Iterator

import pytest

from keepstep.testing.fault_proxy import FaultProxy
from keepstep.testing.s3_server import S3Server

BUCKET = "keepstep-tests"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Fails, with the remedy, where the server is not installed: it comes with the test extra."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def s3_uri(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty ``s3://bucket/prefix`` of this test's own; the environment leads to the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environ().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture
def proxy(
    s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    """Between the clients of this test and the server."""
    with FaultProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
