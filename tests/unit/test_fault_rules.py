"""The parts of the fault proxy that need no network."""

import asyncio

import pytest

from keepstep.testing.fault_rules import Condition, Request, Rule, RuleBook
from keepstep.testing.faults import (
    SLOW_DOWN,
    BodyEffect,
    Fault,
    FlipByte,
    ResetReply,
    ResetRequest,
    SlowBody,
    TearUpload,
    TruncateReply,
    effect_on_reply,
    effect_on_upload,
)
from keepstep.testing.http_wire import Head, read_head, reply_body, request_body

GET = Request("GET", "/bucket/a%20b/c?partNumber=1", {"range": "bytes=0-9", "if-none-match": "*"})


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (Condition(), True),
        (Condition(method="GET", path="a b/c", query="partNumber", header="Range"), True),
        (Condition(method="PUT"), False),
        (Condition(path="partNumber"), False),
        (Condition(query="uploadId"), False),
        (Condition(header="If-None-Match: *"), True),
        (Condition(header="Range: bytes=5"), False),
        (Condition(header="Expect"), False),
    ],
)
def test_condition_holds_if_all_its_parts_do(condition: Condition, holds: bool) -> None:
    assert condition.holds(GET) is holds


@pytest.mark.parametrize(
    ("after", "times", "strikes"),
    [(0, 1, "X..."), (2, 1, "..X."), (1, None, ".XXX"), (0, 0, "....")],
)
def test_rule_skips_and_stops(after: int, times: int | None, strikes: str) -> None:
    rule = Rule(SLOW_DOWN, Condition(), after, times)
    assert "".join(".X"[rule.strikes(GET)] for _ in range(4)) == strikes
    assert rule.hits == strikes.count("X")


def test_first_rule_that_strikes_counts_and_all_is_logged() -> None:
    rules = RuleBook()
    rules.add(Rule(SLOW_DOWN, Condition(), after=1, times=1))
    rules.add(Rule(ResetRequest(), Condition(), after=0, times=None))
    met = [rules.judge("GET", "/bucket", {}) for _ in range(3)]
    assert met == [ResetRequest(), SLOW_DOWN, ResetRequest()]
    assert [request.fault for request in rules.requests] == met


def test_waiting_for_a_rule_has_an_end_and_names_it() -> None:
    rule = Rule(SLOW_DOWN, Condition(path="manifest"), after=0, times=1)
    with pytest.raises(TimeoutError, match="manifest"):
        rule.wait(timeout_seconds=0.01)
    assert rule.strikes(Request("PUT", "/manifest", {}))
    rule.wait(timeout_seconds=0.01)


@pytest.mark.parametrize(
    ("fault", "length_bytes", "effect"),
    [
        (None, 10, BodyEffect()),
        (ResetReply(4), 10, BodyEffect(cut_at=4)),
        (TruncateReply(400), 10, BodyEffect(cut_at=9)),
        (TruncateReply(400), None, BodyEffect(cut_at=400)),
        (TruncateReply(400), 0, BodyEffect(cut_at=0)),
        (FlipByte(3), 10, BodyEffect(flip_at=3)),
        (FlipByte(300), 10, BodyEffect(flip_at=9)),
        (SlowBody(5), 10, BodyEffect(bytes_per_second=5)),
        (TearUpload(4), 10, BodyEffect()),
    ],
)
def test_fault_hits_a_reply_within_its_body(
    fault: Fault | None, length_bytes: int | None, effect: BodyEffect
) -> None:
    assert effect_on_reply(fault, length_bytes) == effect


def test_only_faults_of_uploads_hit_a_request() -> None:
    assert effect_on_upload(TearUpload(4), 10) == BodyEffect(cut_at=4)
    assert effect_on_upload(FlipByte(), 10) == BodyEffect()


def test_effect_acts_on_the_piece_that_holds_its_offset() -> None:
    flip = BodyEffect(flip_at=5)
    assert [flip.alter(bytes(4), offset) for offset in (0, 4, 8)] == [
        bytes(4),
        b"\0\xff\0\0",
        bytes(4),
    ]
    cut = BodyEffect(cut_at=5)
    assert [len(cut.alter(bytes(4), offset)) for offset in (0, 4, 8)] == [4, 1, 0]
    assert [cut.is_cut_before(offset) for offset in (4, 5)] == [False, True]


def test_paced_slices_hold_all_bytes_in_order() -> None:
    data = bytes(range(256))
    slices = BodyEffect(bytes_per_second=200).slices(data)
    assert b"".join(slices) == data
    assert max(map(len, slices)) == 10


@pytest.mark.parametrize(
    ("framing", "wire"),
    [
        ("Content-Length: 9", b"some data"),
        ("Transfer-Encoding: chunked", b"4\r\nsome\r\n5;x=y\r\n data\r\n0\r\nChecksum: 1\r\n\r\n"),
    ],
)
def test_body_is_read_to_its_end_and_no_further(framing: str, wire: bytes) -> None:
    head, pieces, rest = asyncio.run(read_request(framing, wire))
    assert head.first_line == "PUT /a HTTP/1.1"
    assert b"".join(data for data, is_payload in pieces if is_payload) == b"some data"
    assert b"".join(data for data, _ in pieces) == wire
    assert rest == b"next"


def test_truncated_body_is_an_error() -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        asyncio.run(read_request("Content-Length: 90", b"some data"))


@pytest.mark.parametrize(
    ("method", "status", "framing", "body"),
    [
        ("GET", 200, "Content-Length: 2", b"ok"),
        ("GET", 200, "Server: a", b"oknext"),
        ("HEAD", 200, "Content-Length: 2", b""),
        ("DELETE", 204, "Server: a", b""),
    ],
)
def test_length_of_a_reply_depends_on_its_request(
    method: str, status: int, framing: str, body: bytes
) -> None:
    async def read() -> bytes:
        reader = filled(f"HTTP/1.1 {status} OK\r\n{framing}\r\n\r\n".encode() + b"oknext")
        head = await read_head(reader)
        assert head is not None
        return b"".join([data async for data, _ in reply_body(reader, head, method)])

    assert asyncio.run(read()) == body


async def read_request(framing: str, wire: bytes) -> tuple[Head, list[tuple[bytes, bool]], bytes]:
    reader = filled(f"PUT /a HTTP/1.1\r\n{framing}\r\n\r\n".encode() + wire + b"next")
    head = await read_head(reader)
    assert head is not None
    pieces = [tuple(piece) async for piece in request_body(reader, head)]
    return head, pieces, await reader.read()


def filled(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader
