"""The short way for plain requests is nowhere wider than gunicorn, and answers as it does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sealrelay import quick

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PATHS = frozenset({"/api/data"})
LANE = (
    b"POST /api/data HTTP/1.1\r\nHost: 127.0.0.1:5001\r\nContent-Type: application/json\r\n"
    b"Content-Length: 4\r\n\r\n"
)
REQUESTS = (
    b"POST /api/data HTTP/1.1\r\nHost: localhost:8000\r\nUser-Agent: python-requests/2.34.2\r\n"
    b"Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n"
    b"Content-Type: application/json\r\nContent-Length: 4\r\n\r\n"
)
PROXY = (
    b"POST /api/data HTTP/1.1\r\nhost: 127.0.0.1:5001\r\ncontent-type: application/json\r\n"
    b"x-forwarded-for: 127.0.0.1\r\nclient-cert: :MIIB:\r\ncontent-length: 4\r\n\r\n"
)


@pytest.mark.parametrize("head", [LANE, REQUESTS, PROXY], ids=["lane", "requests", "proxy"])
def test_what_members_send_is_plain(head: bytes) -> None:
    read = quick.read_head(head + b"body", PATHS)
    assert read is not None
    assert (read.path, read.length, read.size) == ("/api/data", 4, len(head))
    assert read.fields["CONTENT_TYPE"] == "application/json"
    assert read.fields.get("HTTP_CLIENT_CERT") == (":MIIB:" if head is PROXY else None)


@pytest.mark.parametrize(
    "head",
    [
        LANE[:-1],
        LANE.replace(b"/api/data", b"/api/other"),
        LANE.replace(b"/api/data", b"/api/data?x"),
        LANE.replace(b"POST", b"GET"),
        LANE.replace(b"1.1", b"1.0"),
        LANE.replace(b"\r\n", b"\n"),
        LANE.replace(b"Content-Length: 4", b"Content-Length: 4\r\nContent-Length: 5"),
        LANE.replace(b"Content-Length: 4", b"Content-Length: +4"),
        LANE.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked"),
        LANE.replace(b"Content-Length: 4", b"Content-Length: 4\r\nTransfer-Encoding: chunked"),
        LANE.replace(b"Content-Length: 4", b"Content-Length: 4\r\nExpect: 100-continue"),
        LANE.replace(b"Content-Length: 4", b"Content-Length: 4\r\nConnection: close"),
        LANE.replace(b"Content-Length: 4", b"Content-Length: 4\r\nUpgrade: h2c"),
        LANE.replace(b"Content-Length: 4", b"Content-Length: 4\r\nClient_Cert: :MIIB:"),
        LANE.replace(b"Content-Length: 4", b"Content-Length: 4\r\n folded: yes"),
        LANE.replace(b"Host: 127.0.0.1:5001\r\n", b""),
        LANE.replace(b"Host: 127", b"Host : 127"),
        LANE.replace(b"Host: 127.0.0.1:5001", b"Host:"),
        LANE.replace(b"Host: 127.0.0.1:5001", b"Host: a b"),
        LANE.replace(b"Host: 127.0.0.1:5001", b"Host: a\r\nHost: a"),
        LANE.replace(b"application/json", b"application/json\x00"),
        LANE.replace(b"application/json", b"x" * 8192),
    ],
)
def test_what_is_unusual_is_left_to_gunicorn(head: bytes) -> None:
    assert quick.read_head(head + b"body", PATHS) is None


class Wire:
    """A connection whose peer has sent some pieces; what is answered is kept."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.answered = b""

    def recv(self, _size: int = 0, /) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def sendall(self, data: bytes, /) -> None:
        self.answered += data


def read_with_gunicorn(data: bytes) -> Request | None:
    try:
        return next(RequestParser(Config(), [data], ("127.0.0.1", 1)))
    except (ParseException, StopIteration):
        return None


NASTY = [
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x00", b"\x80", b"_", b",", b"0", b";"),
    *(b"Content-Length: 1\r\n", b"content-length:1\r\n", b"Content_Length: 1\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"X-A:\r\n", b"X-A: \t\r\n", b"Host: b\r\n"),
    *(b"Connection: keep-alive, close\r\n", b"Expect: 100-continue\r\n", b" x\r\n"),
]


@st.composite
def damaged_heads(draw: st.DrawFn) -> bytes:
    head = draw(st.sampled_from([LANE, REQUESTS, PROXY]))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(head)))
        upto = draw(st.integers(at, min(len(head), at + 3)))
        new = draw(st.sampled_from(NASTY) | st.binary(max_size=2))
        head = head[:at] + new + head[upto:]
    return head


@settings(max_examples=1500, deadline=None)
@given(head=damaged_heads())
@example(head=LANE)
@example(head=REQUESTS)
@example(head=PROXY)
def test_whatever_is_read_here_gunicorn_reads_the_same_way(head: bytes) -> None:
    data = head + b"bodyPOST /next"
    ours = quick.read_head(data, PATHS)
    if ours is None:
        return
    theirs = read_with_gunicorn(data)
    assert theirs is not None
    assert (theirs.method, theirs.path, theirs.version) == ("POST", ours.path, (1, 1))
    assert not theirs.should_close()
    fields = dict(theirs.headers)
    assert len(fields) == len(theirs.headers)
    assert fields.get("CONTENT-TYPE", "") == ours.fields.get("CONTENT_TYPE", "")
    assert fields.get("CLIENT-CERT") == ours.fields.get("HTTP_CLIENT_CERT")
    assert theirs.body is not None
    length = min(ours.length, len(data) - ours.size)
    assert theirs.body.read(100) == data[ours.size :][:length]


# --- serving a connection


def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def close(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("408 Request Timeout", [("Connection", "close"), ("Content-Length", "0")])
    return [b""]


def bodies(answered: bytes) -> list[bytes]:
    return [part.partition(b"\r\n\r\n")[2] for part in answered.split(b"HTTP/1.1 200 OK\r\n")[1:]]


def serve(wire: Wire, *, stopping: bool = False) -> bytes | None:
    return quick.serve(wire, wire.recv, echo, PATHS, lambda: stopping)


def test_requests_are_answered_one_after_the_other() -> None:
    wire = Wire(LANE + b"one1", REQUESTS + b"two2")
    assert serve(wire) is None
    assert bodies(wire.answered) == [b"one1", b"two2"]
    assert b"\r\nDate: " in wire.answered
    assert b"Connection: close" not in wire.answered


def test_body_may_come_in_pieces_and_with_the_next_request() -> None:
    wire = Wire(LANE, b"on", b"e1" + LANE + b"two2" + LANE[:0], LANE + b"end")
    assert serve(wire) is None
    assert bodies(wire.answered) == [b"one1", b"two2", b"end"], "the last was cut off by its peer"


def test_rest_of_the_connection_is_given_back_with_the_first_unusual_request() -> None:
    unusual = LANE.replace(b"POST", b"PUT") + b"body"
    wire = Wire(LANE + b"one1" + unusual, LANE + b"two2")
    assert serve(wire) == unusual
    assert bodies(wire.answered) == [b"one1"]


def test_answer_of_a_stopping_worker_is_the_last() -> None:
    wire = Wire(LANE + b"one1" + LANE + b"two2")
    assert serve(wire, stopping=True) is None
    assert bodies(wire.answered) == [b"one1"]
    assert b"Connection: close\r\n" in wire.answered


def test_connection_ends_where_the_application_says_so() -> None:
    wire = Wire(LANE + b"one1" + LANE + b"two2")
    assert quick.serve(wire, wire.recv, close, PATHS, lambda: False) is None
    assert wire.answered.count(b"HTTP/1.1") == 1
    assert wire.answered.count(b"Connection: close") == 1


def ignore(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("500 Internal Server Error", [("Content-Length", "0")])
    return [b""]


def test_body_that_the_application_leaves_is_read_before_the_next_request() -> None:
    wire = Wire(LANE + b"o", b"ne1" + LANE + b"two2")
    assert quick.serve(wire, wire.recv, ignore, PATHS, lambda: False) is None
    assert wire.answered.count(b"HTTP/1.1 500") == 2
    assert b"Connection: close" not in wire.answered


def test_connection_ends_where_the_end_of_a_body_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quick, "_REST_LIMIT", 3)
    wire = Wire(LANE + b"one1" + LANE + b"two2")
    assert quick.serve(wire, wire.recv, ignore, PATHS, lambda: False) is None
    assert wire.answered.count(b"HTTP/1.1") == 1
    assert wire.answered.count(b"Connection: close") == 1


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("localhost", True),
        ("127.0.0.1:5001", True),
        ("a_b~%41.example:", True),
        ("[2001:db8::1]:8000", True),
        ("[::ffff:192.0.2.1]", True),
        ("", False),
        (":8000", False),
        ("a:b", False),
        ("a:1:2", False),
        ("user@a", False),
        ("a/b", False),
        ("a b", False),
        ("%4", False),
        ("::1", False),
        ("[::1", False),
        ("[1::2::3]", False),
        ("[fe80::1%eth0]", False),
        ("a\n", False),
        ("\xe4", False),
    ],
)
def test_host_is_a_name_or_an_address_and_perhaps_a_port(value: str, *, good: bool) -> None:
    assert quick.is_host(value) is good
