"""What the store over S3 makes of each fault: a counted retry, or an error and nothing left."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from keepstep.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageUnavailable,
)
from keepstep.observability.counters import COUNTERS
from keepstep.storage import s3_client, s3_upload
from keepstep.storage.opening import open_storage
from keepstep.storage.retrying import RETRIES, RetryPolicy
from keepstep.storage.s3 import S3Storage
from keepstep.testing.fault_proxy import FaultProxy
from keepstep.testing.faults import (
    ACCESS_DENIED,
    ERROR_IN_OK,
    EXPIRED_TOKEN,
    INTERNAL_ERROR,
    SLOW_DOWN,
    Answer,
    Fault,
    FlipByte,
    LoseReply,
    ResetReply,
    ResetRequest,
    SlowBody,
    TearUpload,
    TruncateReply,
)

PART_BYTES = 5 << 20
"""The smallest that S3 takes: the tests are quicker."""
SMALL = bytes(range(256)) * 400
LARGE = bytes(range(251)) * ((PART_BYTES + 12345) // 251)
ATTEMPTS = 4


@pytest.fixture
def storage(s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    """Through the proxy, with the object ``old`` in it."""
    del proxy  # it has set the endpoint
    monkeypatch.setattr(s3_upload, "PART_BYTES", PART_BYTES)
    storage = open_s3(s3_uri)
    storage.put("old", SMALL)
    return storage


def open_s3(uri: str, *, attempts: int = ATTEMPTS) -> S3Storage:
    policy = RetryPolicy(attempts=attempts, longest_wait_seconds=0.01)
    storage = open_storage(uri, policy=policy)
    assert isinstance(storage, S3Storage)
    return storage


@dataclass(frozen=True)
class Request:
    """A kind of request, what makes the store send it, and what is there once that is done."""

    name: str
    act: Callable[[S3Storage], object]
    there: dict[str, bytes]
    method: str
    query: str | None = None

    def __str__(self) -> str:
        return self.name

    def spoil(self, proxy: FaultProxy, fault: Fault, times: int | None) -> "Spoiled":
        before = COUNTERS.total(RETRIES)
        rule = proxy.inject(fault, method=self.method, query=self.query, times=times)
        return Spoiled(lambda: rule.hits, lambda: COUNTERS.total(RETRIES) - before)


@dataclass(frozen=True)
class Spoiled:
    hits: Callable[[], int]
    retries: Callable[[], int]


def write(storage: S3Storage, data: bytes) -> None:
    with storage.open_writer("new", len(data)) as writer:
        writer.write(0, data)


def read(storage: S3Storage) -> None:
    buffer = bytearray(len(SMALL) - 1000)
    with storage.open_reader("old") as reader:
        assert reader.read_into(1000, memoryview(buffer)) == len(buffer)
    assert buffer == SMALL[1000:]


def get(storage: S3Storage) -> None:
    assert storage.get("old") == SMALL


def look(storage: S3Storage) -> None:
    assert [info.key for info in storage.list("")] == ["old"]


OLD = {"old": SMALL}
WRITES = [
    Request("put", lambda s: s.put("new", SMALL), OLD | {"new": SMALL}, "PUT"),
    Request("create", lambda s: s.create("new", SMALL), OLD | {"new": SMALL}, "PUT"),
    Request("whole", lambda s: write(s, SMALL), OLD | {"new": SMALL}, "PUT"),
    Request("part", lambda s: write(s, LARGE), OLD | {"new": LARGE}, "PUT", "partNumber"),
]
BEGIN = Request("begin", lambda s: write(s, LARGE), OLD | {"new": LARGE}, "POST", "uploads")
COMPLETE = Request("complete", lambda s: write(s, LARGE), OLD | {"new": LARGE}, "POST", "uploadId")
CHECK = Request("check", lambda s: write(s, LARGE), OLD | {"new": LARGE}, "HEAD")
READS = [
    Request("get", get, OLD, "GET"),
    Request("read", read, OLD, "GET"),
    Request("list", look, OLD, "GET", "list-type"),
]
SIZE = Request("size", read, OLD, "HEAD")
UPLOADS = Request("uploads", lambda s: s.uploads(""), OLD, "GET", "uploads")
DELETE = Request("delete", lambda s: s.delete(["old"]), {}, "POST", "delete")
ALL = [*WRITES, BEGIN, COMPLETE, CHECK, *READS, SIZE, UPLOADS, DELETE]


def contents(storage: S3Storage) -> dict[str, bytes]:
    return {info.key: storage.get(info.key) for info in storage.list("")}


@pytest.mark.parametrize("request_", ALL, ids=str)
@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL_ERROR, ResetRequest(), LoseReply()])
def test_what_passes_is_repeated_and_counted(
    storage: S3Storage, proxy: FaultProxy, request_: Request, fault: Fault
) -> None:
    spoiled = request_.spoil(proxy, fault, times=2)
    request_.act(storage)
    assert (spoiled.hits(), spoiled.retries()) == (2, 2)
    assert contents(storage) == request_.there
    if request_ is BEGIN and isinstance(fault, LoseReply):
        assert len(storage.uploads("")) == 2, "nobody knows their names but the next start's sweep"
    else:
        assert storage.uploads("") == ()


@pytest.mark.parametrize("request_", WRITES, ids=str)
def test_a_torn_upload_is_sent_again(
    storage: S3Storage, proxy: FaultProxy, request_: Request
) -> None:
    spoiled = request_.spoil(proxy, TearUpload(50_000), times=2)
    request_.act(storage)
    assert (spoiled.hits(), spoiled.retries()) == (2, 2)
    assert contents(storage) == request_.there


@pytest.mark.parametrize("request_", READS, ids=str)
@pytest.mark.parametrize("fault", [ResetReply(50), TruncateReply(50)])
def test_a_torn_reply_is_asked_for_again(
    storage: S3Storage, proxy: FaultProxy, request_: Request, fault: Fault
) -> None:
    spoiled = request_.spoil(proxy, fault, times=2)
    request_.act(storage)
    assert (spoiled.hits(), spoiled.retries()) == (2, 2)


@pytest.mark.parametrize("request_", [*WRITES, *READS, COMPLETE], ids=str)
def test_silence_ends_with_the_read_timeout(
    storage: S3Storage,
    s3_uri: str,
    proxy: FaultProxy,
    request_: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_client, "_READ_TIMEOUT_SECONDS", 0.5)
    storage = open_s3(s3_uri)
    spoiled = request_.spoil(proxy, LoseReply(hang_seconds=60), times=1)
    request_.act(storage)
    assert spoiled.hits() == 1
    assert spoiled.retries() >= 1
    assert contents(storage) == request_.there


def test_an_error_in_a_successful_reply_to_complete_is_no_success(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    spoiled = COMPLETE.spoil(proxy, ERROR_IN_OK, times=2)
    COMPLETE.act(storage)
    assert (spoiled.hits(), spoiled.retries()) == (2, 2)
    assert contents(storage) == COMPLETE.there


def test_a_completion_that_reports_an_error_and_is_carried_out_is_a_success(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    COMPLETE.spoil(proxy, Answer(200, "InternalError", is_executed=True), times=1)
    COMPLETE.act(storage)
    assert contents(storage) == COMPLETE.there


@pytest.mark.parametrize("request_", [READS[0], READS[1], WRITES[0]], ids=str)
def test_a_slow_body_arrives(storage: S3Storage, proxy: FaultProxy, request_: Request) -> None:
    spoiled = request_.spoil(proxy, SlowBody(400_000), times=1)
    request_.act(storage)
    assert (spoiled.hits(), spoiled.retries()) == (1, 0)


@pytest.mark.parametrize("request_", [WRITES[1], WRITES[2], COMPLETE], ids=str)
@pytest.mark.parametrize("fault", [LoseReply(), SLOW_DOWN])
def test_who_really_came_second_learns_it(
    storage: S3Storage, proxy: FaultProxy, request_: Request, fault: Fault
) -> None:
    storage.put("new", b"another's")
    request_.spoil(proxy, fault, times=1)
    with pytest.raises(ObjectExists) as caught:
        request_.act(storage)
    assert caught.value.key == "new"
    assert storage.get("new") == b"another's"
    assert storage.uploads("") == ()


@pytest.mark.parametrize("request_", ALL, ids=str)
def test_what_lasts_ends_when_the_attempts_are_used_up(
    storage: S3Storage, proxy: FaultProxy, request_: Request
) -> None:
    spoiled = request_.spoil(proxy, SLOW_DOWN, times=None)
    with pytest.raises(StorageUnavailable, match=r"SlowDown|503"):
        request_.act(storage)
    assert (spoiled.hits(), spoiled.retries()) == (ATTEMPTS, ATTEMPTS - 1)
    proxy.clear()
    assert storage.uploads("") == ()
    assert set(contents(storage)) == {"old"}


@pytest.mark.parametrize("request_", ALL, ids=str)
def test_a_refusal_is_final_and_names_the_permission(
    storage: S3Storage, proxy: FaultProxy, request_: Request
) -> None:
    spoiled = request_.spoil(proxy, ACCESS_DENIED, times=None)
    with pytest.raises(StorageDenied) as caught:
        request_.act(storage)
    assert (spoiled.hits(), spoiled.retries()) == (1, 0)
    if request_.method != "HEAD":
        assert "grant s3:" in str(caught.value)
    proxy.clear()
    assert storage.uploads("") == ()


def test_a_store_that_is_gone_leaves_its_uploads_to_be_swept(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    with pytest.raises(StorageUnavailable), storage.open_writer("new", len(LARGE)) as writer:
        writer.write(0, LARGE[:PART_BYTES])
        proxy.take_down()
        writer.write(PART_BYTES, LARGE[PART_BYTES:])
    proxy.bring_up()
    (upload,) = storage.uploads("")
    assert upload.key == "new"
    storage.abort_upload(upload)
    storage.abort_upload(upload)
    assert storage.uploads("") == ()


def test_uploads_that_could_not_be_let_go_are_when_the_next_has_begun(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    deaf = proxy.inject(SLOW_DOWN, method="DELETE", query="uploadId", times=3)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), storage.open_writer("given-up", len(LARGE)):
            raise ZeroDivisionError
    assert deaf.hits == 3, "the second has tried the first one's again, once"
    assert len(storage.uploads("")) == 2
    write(storage, LARGE)
    assert storage.uploads("") == ()


@pytest.mark.parametrize("answer", [ACCESS_DENIED, EXPIRED_TOKEN, Answer(507, "QuotaExceeded")])
def test_a_final_error_after_a_create_in_doubt_is_an_unknown_outcome(
    storage: S3Storage, proxy: FaultProxy, answer: Answer
) -> None:
    """Who takes it for a failure would remove what the object refers to."""
    proxy.inject(LoseReply(), method="PUT", times=1)
    proxy.inject(answer, method="PUT", times=None)
    with pytest.raises(StorageUnavailable, match="an earlier try may still succeed"):
        storage.create("new", SMALL)
    proxy.clear()
    assert storage.get("new") == SMALL


def test_a_completion_in_doubt_that_then_is_refused_removes_nothing_by_name(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    COMPLETE.spoil(proxy, LoseReply(), times=1)
    COMPLETE.spoil(proxy, ACCESS_DENIED, times=None)
    with pytest.raises(StorageDenied):
        write(storage, LARGE)
    proxy.clear()
    assert contents(storage) == OLD | {"new": LARGE}, "of an attempt that is not committed"
    assert storage.uploads("") == ()


def test_parts_that_arrive_after_the_abort_make_no_object(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    """As when one thread of several fails and the others are still sending."""
    slow = proxy.inject(SlowBody(8 * PART_BYTES), method="PUT", query="partNumber=1")
    late: list[StorageError] = []

    def send(writer: object) -> None:
        try:
            writer.write(0, LARGE[:PART_BYTES])  # type: ignore[attr-defined]
        except StorageError as error:
            late.append(error)

    with pytest.raises(ZeroDivisionError), storage.open_writer("new", len(LARGE)) as writer:
        thread = threading.Thread(target=send, args=(writer,))
        thread.start()
        slow.wait()
        raise ZeroDivisionError
    thread.join()
    assert [type(error) for error in late] in ([ObjectNotFound], [])
    assert storage.uploads("") == ()
    assert set(contents(storage)) == {"old"}


def test_a_flipped_byte_in_a_range_goes_unnoticed_here(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    """Which is why whoever reads blocks compares checksums of their own."""
    proxy.inject(FlipByte(7), method="GET")
    buffer = bytearray(100)
    with storage.open_reader("old") as reader:
        reader.read_into(0, memoryview(buffer))
    assert [n for n in range(100) if buffer[n] != SMALL[n]] == [7]


def test_threads_share_a_store_through_a_burst(storage: S3Storage, proxy: FaultProxy) -> None:
    rule = proxy.inject(SLOW_DOWN, method="PUT", times=6)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: storage.create(f"many/{n}", b"%d" % n), range(8)))
    assert rule.hits == 6
    assert [storage.get(f"many/{n}") for n in range(8)] == [b"%d" % n for n in range(8)]


@pytest.mark.parametrize("answer", [EXPIRED_TOKEN, SLOW_DOWN])
def test_no_credential_shows_in_errors_or_logs(
    s3_uri: str,
    proxy: FaultProxy,
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret, token = "wJalrXUtnFEMI/K7MDENG", "FwoGZXIvYXdzEXAMPLE"  # made up
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    caplog.set_level(logging.DEBUG, logger="keepstep")
    proxy.inject(answer, times=None)
    storage = open_s3(s3_uri, attempts=2)
    shown: list[str] = []
    for request in ALL:
        with pytest.raises(StorageError) as caught:
            request.act(storage)
        error: BaseException | None = caught.value
        while error is not None:
            shown += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
    everything = "\n".join([*shown, caplog.text])
    assert secret not in everything
    assert token not in everything
