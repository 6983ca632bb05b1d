"""Each fault of the proxy does what it says to a client that retries nothing."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from keepstep.testing.fault_proxy import FaultProxy
from keepstep.testing.faults import (
    ACCESS_DENIED,
    ERROR_IN_OK,
    EXPIRED_TOKEN,
    INTERNAL_ERROR,
    NO_SUCH_BUCKET,
    SLOW_DOWN,
    Answer,
    FlipByte,
    LoseReply,
    ResetReply,
    ResetRequest,
    SlowBody,
    TearUpload,
    TruncateReply,
)
from keepstep.testing.s3_server import S3Server

MIB = 1024**2
BUCKET = "keepstep-tests"


class Objects:
    """The objects of one test, through the proxy or past it."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.client = client
        self.prefix = prefix

    def put(self, name: str, data: bytes, **options: Any) -> Any:
        return self.client.put_object(
            Bucket=BUCKET, Key=f"{self.prefix}/{name}", Body=data, **options
        )

    def get(self, name: str, **options: Any) -> bytes:
        reply = self.client.get_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}", **options)
        return reply["Body"].read()

    def names(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self.prefix}/")
        return [entry["Key"].rpartition("/")[2] for entry in listed.get("Contents", [])]


@pytest.fixture
def past(s3_server: S3Server, s3_uri: str) -> Objects:
    return Objects(s3_server.client(), s3_uri.rpartition("/")[2])


@pytest.fixture
def through(s3_server: S3Server, s3_uri: str, proxy: FaultProxy) -> Objects:
    return Objects(s3_server.client(endpoint=proxy.endpoint), s3_uri.rpartition("/")[2])


def test_without_a_fault_bodies_pass_whole_on_one_connection(
    proxy: FaultProxy, through: Objects
) -> None:
    data = bytes(range(256)) * 4 * 4096
    through.put("a", data)
    assert through.get("a") == data
    assert through.get("a", Range="bytes=100-199") == data[100:200]
    assert [request.method for request in proxy.requests] == ["PUT", "GET", "GET"]
    assert all(request.fault is None for request in proxy.requests)
    assert len(proxy._connections) == 1


@pytest.mark.parametrize(
    ("fault", "status"),
    [(SLOW_DOWN, 503), (ACCESS_DENIED, 403), (EXPIRED_TOKEN, 400), (NO_SUCH_BUCKET, 404)],
)
def test_answer_reaches_the_client_and_the_server_sees_nothing(
    proxy: FaultProxy, through: Objects, past: Objects, fault: Answer, status: int
) -> None:
    rule = proxy.inject(fault, method="PUT", times=2)
    for _ in range(2):
        with pytest.raises(ClientError) as caught:
            through.put("a", b"data")
        assert caught.value.response["Error"]["Code"] == fault.code
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert rule.hits == 2
    assert past.names() == []
    through.put("a", b"data")
    assert past.get("a") == b"data"


@pytest.mark.parametrize("fault", [INTERNAL_ERROR, ERROR_IN_OK])
def test_failed_completion_leaves_the_upload_open(
    proxy: FaultProxy, through: Objects, past: Objects, fault: Answer
) -> None:
    complete = start_multipart(through, "a")
    rule = proxy.inject(fault, method="POST", query="uploadId=")
    with pytest.raises(ClientError, match="InternalError"):
        complete()
    assert rule.hits == 1
    assert past.names() == []
    complete()
    assert past.names() == ["a"]


def test_executed_answer_hides_that_the_server_did_it(
    proxy: FaultProxy, through: Objects, past: Objects
) -> None:
    proxy.inject(Answer(500, "InternalError", is_executed=True), method="PUT")
    with pytest.raises(ClientError, match="InternalError"):
        through.put("a", b"data")
    assert past.get("a") == b"data"
    assert through.get("a") == b"data"


def test_reset_request_never_reaches_the_server(
    proxy: FaultProxy, through: Objects, past: Objects
) -> None:
    proxy.inject(ResetRequest(), method="PUT")
    with pytest.raises(ConnectionClosedError):
        through.put("a", b"data")
    assert past.names() == []


def test_lost_reply_of_an_exclusive_create_makes_the_second_try_lose(
    proxy: FaultProxy, through: Objects, past: Objects
) -> None:
    proxy.inject(LoseReply(), method="PUT", header="If-None-Match: *")
    with pytest.raises(ConnectionClosedError):
        through.put("a", b"ours", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        through.put("a", b"ours", IfNoneMatch="*")
    assert past.get("a") == b"ours"


def test_hanging_reply_outlasts_the_read_timeout(
    proxy: FaultProxy, through: Objects, past: Objects, s3_server: S3Server
) -> None:
    impatient = s3_server.client(endpoint=proxy.endpoint, read_timeout_seconds=0.5)
    proxy.inject(LoseReply(hang_seconds=60), method="PUT")
    with pytest.raises(ReadTimeoutError):
        Objects(impatient, through.prefix).put("a", b"data")
    assert past.get("a") == b"data"


@pytest.mark.parametrize("fault", [ResetReply(300_000), TruncateReply(300_000)])
def test_broken_reply_delivers_its_beginning_only(
    proxy: FaultProxy, through: Objects, fault: ResetReply | TruncateReply
) -> None:
    data = bytes(range(256)) * 4096
    through.put("a", data)
    proxy.inject(fault, method="GET")
    reply = through.client.get_object(Bucket=BUCKET, Key=f"{through.prefix}/a")
    assert reply["Body"].read(1000) == data[:1000]
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        reply["Body"].read()
    assert through.get("a") == data


def test_reset_and_truncation_differ_in_how_the_connection_ends(
    proxy: FaultProxy, through: Objects
) -> None:
    through.put("public", b"0123456789")
    proxy.inject(TruncateReply(4), method="GET")
    proxy.inject(ResetReply(4), method="GET")
    with send(proxy, b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % BUCKET.encode()) as connection:
        while connection.recv(65536):
            pass
    with (
        send(proxy, b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % BUCKET.encode()) as connection,
        pytest.raises(ConnectionResetError),
    ):
        while connection.recv(65536):
            pass


@pytest.mark.parametrize("offset", [0, 700_000, 10 * MIB])
def test_flipped_byte_is_one_and_where_asked(
    proxy: FaultProxy, through: Objects, offset: int
) -> None:
    data = bytes(MIB)
    through.put("a", data)
    proxy.inject(FlipByte(offset), method="GET", header="Range")
    spoiled = through.get("a", Range=f"bytes=0-{MIB - 1}")
    assert [place for place, byte in enumerate(spoiled) if byte] == [min(offset, MIB - 1)]


def test_torn_upload_leaves_no_object(proxy: FaultProxy, through: Objects, past: Objects) -> None:
    rule = proxy.inject(TearUpload(100_000), method="PUT")
    with pytest.raises(BotoCoreError):
        through.put("a", bytes(MIB))
    assert rule.hits == 1
    assert past.names() == []


def test_slow_body_keeps_its_bytes(proxy: FaultProxy, through: Objects) -> None:
    data = bytes(range(256)) * 100
    proxy.inject(SlowBody(200_000), times=2)
    through.put("a", data)
    assert through.get("a") == data
    assert [type(request.fault) for request in proxy.requests] == [SlowBody, SlowBody]


def test_server_that_is_down_refuses_and_comes_back_on_the_same_port(
    proxy: FaultProxy, through: Objects
) -> None:
    through.put("a", b"data")
    endpoint = proxy.endpoint
    with proxy.down(), pytest.raises(EndpointConnectionError):
        through.get("a")
    assert proxy.endpoint == endpoint
    assert through.get("a") == b"data"


def test_take_down_resets_a_request_in_flight(proxy: FaultProxy, through: Objects) -> None:
    rule = proxy.inject(LoseReply(hang_seconds=60), method="PUT")
    errors: list[Exception] = []

    def put() -> None:
        try:
            through.put("a", b"data")
        except ConnectionClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    rule.wait()
    proxy.take_down()
    thread.join(10)
    assert len(errors) == 1


def test_forked_child_does_not_hold_a_connection_open(proxy: FaultProxy, through: Objects) -> None:
    with send(proxy, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") as connection:
        reply = b""
        while not reply.endswith(b"</Error>"):
            reply += connection.recv(65536)
        with forked_child():
            proxy.take_down()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
            with pytest.raises(EndpointConnectionError):
                through.get("a")


def test_rules_skip_and_select(proxy: FaultProxy, through: Objects) -> None:
    rule = proxy.inject(SLOW_DOWN, method="GET", path="/wanted", after=1, times=1)
    through.put("wanted", b"1")
    through.put("other", b"2")
    assert [through.get("other"), through.get("wanted"), through.get("other")] == [b"2", b"1", b"2"]
    with pytest.raises(ClientError, match="SlowDown"):
        through.get("wanted")
    assert (rule.hits, through.get("wanted")) == (1, b"1")
    proxy.inject(SLOW_DOWN, times=None)
    proxy.clear()
    assert through.get("wanted") == b"1"
    assert len(proxy.requests) == 1


def test_chunked_upload_passes_through(proxy: FaultProxy) -> None:
    """Unsigned, hence refused; but refused by the server, after it has read the request."""
    head = b"PUT /%s/chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with send(proxy, head % BUCKET.encode() + b"4\r\ndata\r\n0\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 403")


def test_dead_upstream_resets_the_client() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        upstream = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with (
            FaultProxy(upstream) as proxy,
            send(proxy, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") as connection,
            pytest.raises(ConnectionResetError),
        ):
            connection.recv(1)


def test_stop_closes_everything(s3_server: S3Server) -> None:
    proxy = FaultProxy(s3_server.endpoint).start()
    with send(proxy, b"GET / HTTP/1.1\r\n") as connection:
        proxy.stop()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert not [thread for thread in threading.enumerate() if thread.name == "fault-proxy"]


def test_upstream_other_than_plain_http_is_refused() -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        FaultProxy("https://127.0.0.1:1")


def send(proxy: FaultProxy, request: bytes) -> socket.socket:
    parts = urlsplit(proxy.endpoint)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=10)
    connection.sendall(request)
    return connection


@contextmanager
def forked_child() -> Iterator[None]:
    """A child with copies of all that is open here, for as long as the block runs."""
    event = get_context("fork").Event()
    child = get_context("fork").Process(target=event.wait, args=(60,))
    child.start()
    try:
        yield
    finally:
        event.set()
        child.join()


def start_multipart(objects: Objects, name: str) -> Callable[[], Any]:
    """Upload one part; returns what completes the object."""
    where = {"Bucket": BUCKET, "Key": f"{objects.prefix}/{name}"}
    upload = objects.client.create_multipart_upload(**where)["UploadId"]
    part = objects.client.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"data")
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    return lambda: objects.client.complete_multipart_upload(
        **where, UploadId=upload, MultipartUpload=parts
    )
