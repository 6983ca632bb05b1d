"""The store over S3 beside a server that answers as each test says."""

import socket
import threading
from collections.abc import Callable
from contextlib import closing

import pytest
from s3_answers import ATTEMPTS, Asked, head, open_s3, serving, succeed

from keepstep.errors import ObjectExists, StorageDenied, StorageError, StorageUnavailable
from keepstep.storage.s3 import S3Storage


def test_a_tls_connection_that_breaks_is_made_again(aws: pytest.MonkeyPatch) -> None:
    """In the handshake: ssl's error is inside urllib3's, and that one inside botocore's."""
    connections = 0
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def hang_up() -> None:
            nonlocal connections
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                connections += 1
                with peer:
                    peer.recv(1 << 16)
                    peer.sendall(b"\x16\x03\x03\x00\x50")  # the start of a record

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            storage = open_s3(f"https://127.0.0.1:{server.getsockname()[1]}", aws)
            with pytest.raises(StorageUnavailable, match="TLS connection broke"):
                storage.put("a", b"x")
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert connections == ATTEMPTS


@pytest.mark.parametrize("body", [b"<html>maintenance<br></html>", b"<Foo/>"])
@pytest.mark.parametrize(
    "act",
    [
        lambda storage: storage.put("a", b"x"),
        lambda storage: storage.create("a", b"x"),
        lambda storage: storage.open_writer("a", 9 << 20).__enter__(),
        lambda storage: list(storage.list("")),
        lambda storage: storage.uploads(""),
    ],
    ids=["put", "create", "begin", "list", "uploads"],
)
def test_a_success_that_is_not_the_stores_is_none(
    act: Callable[[S3Storage], object], body: bytes, aws: pytest.MonkeyPatch
) -> None:
    with (
        serving(lambda asked: asked.reply(200, body)) as (endpoint, _),
        pytest.raises(StorageUnavailable),
    ):
        act(open_s3(endpoint, aws))


def test_the_whole_object_is_not_taken_for_a_range_of_it(aws: pytest.MonkeyPatch) -> None:
    def answer(asked: Asked) -> None:
        if asked.command == "HEAD":
            head(asked, 10)
        else:
            asked.reply(200, b"0123456789")

    buffer = bytearray(10)
    with serving(answer) as (endpoint, log), open_s3(endpoint, aws).open_reader("a") as reader:
        for offset, size_bytes in ((0, 5), (5, 5)):
            log.clear()
            with pytest.raises(StorageUnavailable, match="the whole object came"):
                reader.read_into(offset, memoryview(buffer)[:size_bytes])
            assert len(log) == ATTEMPTS
        assert reader.read_into(0, memoryview(buffer)) == 10
    assert buffer == b"0123456789"


def write_with_completion(checksum: str, aws: pytest.MonkeyPatch) -> None:
    """Write an object of two parts on a server that says this checksum of it."""
    size_bytes = 9 << 20

    def answer(asked: Asked) -> None:
        if asked.command == "HEAD":
            head(asked, size_bytes)
        elif asked.command == "POST" and "uploadId" in asked.path:
            text = f"<R><ETag>e</ETag><ChecksumCRC32C>{checksum}</ChecksumCRC32C></R>"
            asked.reply(200, text.encode())
        elif asked.command == "POST":
            asked.reply(200, b"<R><UploadId>u</UploadId></R>")
        else:
            succeed(asked)

    with (
        serving(answer) as (endpoint, _),
        open_s3(endpoint, aws).open_writer("a", size_bytes) as writer,
    ):
        writer.write(0, bytes(size_bytes))


def test_a_checksum_of_the_whole_object_is_not_taken_for_one_of_its_parts(
    aws: pytest.MonkeyPatch,
) -> None:
    write_with_completion("AAAAAA==", aws)


def test_an_object_that_is_not_what_was_sent_is_an_error(aws: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageUnavailable, match="not what was sent"):
        write_with_completion("AAAAAA==-2", aws)


def not_deleted(name: str, code: str) -> bytes:
    return (
        f"<DeleteResult><Error><Key>{name}</Key><Code>{code}</Code><Message>m</Message></Error>"
        "</DeleteResult>"
    ).encode()


def test_a_delete_that_fails_in_passing_for_one_key_is_repeated(aws: pytest.MonkeyPatch) -> None:
    def answer(asked: Asked) -> None:
        is_busy = len(log) == 1
        asked.reply(200, not_deleted("run/b", "SlowDown") if is_busy else b"<DeleteResult/>")

    with serving(answer) as (endpoint, log):
        open_s3(endpoint, aws).delete(["a", "b"])
        assert len(log) == 2


@pytest.mark.parametrize(
    ("code", "kind", "requests"),
    [("AccessDenied", StorageDenied, 1), ("InternalError", StorageUnavailable, ATTEMPTS)],
)
def test_an_error_of_a_delete_has_the_key_as_callers_know_it(
    code: str, kind: type[StorageError], requests: int, aws: pytest.MonkeyPatch
) -> None:
    with (
        serving(lambda asked: asked.reply(200, not_deleted("run/b", code))) as (endpoint, log),
        pytest.raises(kind, match=code) as caught,
    ):
        open_s3(endpoint, aws).delete(["a", "b"])
    assert caught.value.key == "b"
    assert len(log) == requests


def test_a_delete_that_is_refused_as_a_whole_has_such_a_key_too(aws: pytest.MonkeyPatch) -> None:
    with (
        serving(lambda asked: asked.refuse(403, "AccessDenied")) as (endpoint, _),
        pytest.raises(StorageDenied, match="s3:DeleteObject") as caught,
    ):
        open_s3(endpoint, aws).delete(["a", "b"])
    assert caught.value.key == "a"


@pytest.mark.parametrize("is_exclusive", [True, False])
@pytest.mark.parametrize("status", [403, 507])
def test_a_refusal_after_a_create_in_doubt_is_no_certainty(
    status: int, is_exclusive: bool, aws: pytest.MonkeyPatch
) -> None:
    def answer(asked: Asked) -> None:
        if asked.command == "HEAD":
            asked.reply(404)
        elif [request.command for request in log].count("PUT") == 1:
            asked.reply(500)
        else:
            asked.refuse(status, "")

    with serving(answer) as (endpoint, log):
        storage = open_s3(endpoint, aws, is_exclusive=is_exclusive)
        with pytest.raises(StorageUnavailable, match="an earlier try may still succeed") as caught:
            storage.create("a", b"x")
    assert caught.value.key == "a"
    assert isinstance(caught.value.__cause__, StorageError)


def test_a_refusal_alone_is_one(aws: pytest.MonkeyPatch) -> None:
    with (
        serving(lambda asked: asked.refuse(403, "AccessDenied")) as (endpoint, _),
        pytest.raises(StorageDenied),
    ):
        open_s3(endpoint, aws).create("a", b"x")


def test_a_taken_name_whose_owner_is_not_told_is_taken(aws: pytest.MonkeyPatch) -> None:
    """Callers read it back; an error of the look itself would tell them that it is not theirs."""

    def answer(asked: Asked) -> None:
        if asked.command == "HEAD":
            asked.reply(403)
        else:
            asked.refuse(412, "PreconditionFailed")

    with (
        serving(answer) as (endpoint, _),
        pytest.raises(ObjectExists, match="by whom is not known"),
    ):
        open_s3(endpoint, aws).create("a", b"x")
