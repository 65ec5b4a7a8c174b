"""Whatever a coordinator answers, the client ends in time, with one of its own errors."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sealrelay.client import Client
from sealrelay.errors import MessageRefused, Unreachable
from sealrelay.seal import Token
from tests.integration.test_access import COORDINATOR_URI
from tests.integration.test_load_generator import serve
from tests.support.deployment import Deployment
from tests.support.pki import Leaf

Request = BaseHTTPRequestHandler
_DEADLINE = 2.0
_SOON = 20.0
"""Seconds, ten times the deadline, for a busy machine. What never ends takes longer."""
_NOT_OURS = "an answer that does not acknowledge this message"
_TOO_LONG = "an answer of more than 65536 bytes"


@pytest.fixture
def relay_folder(deployment: Deployment, tmp_path: Path) -> Path:
    deployment.authority.issue(tmp_path / "relay", Leaf([COORDINATOR_URI]))
    return tmp_path


@contextlib.contextmanager
def client_of(
    deployment: Deployment,
    folder: Path,
    answer: Callable[[Request], None],
    on_retry: Callable[[str], None] = lambda reason: None,
) -> Iterator[Client]:
    """A client of a coordinator that answers so."""
    files = deployment.client_config("client1").parent
    with serve(folder, answer) as port:
        config = deployment.write_client(
            files, "client1", f"https://127.0.0.1:{port}", file="answers.toml", deadline=_DEADLINE
        )
        with Client.from_file(config, on_retry=on_retry) as client:
            yield client


def respond(
    request: Request, body: bytes, status: int = 200, length: int | None = None, **more: str
) -> None:
    request.send_response_only(status)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in more.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


def flood(request: Request, head: bytes) -> None:
    """A body of 256 MiB, or until the client closes the connection."""
    request.wfile.write(head)
    for _ in range(4096):
        request.wfile.write(b" " * 65536)


def drip(request: Request, head: bytes, piece: bytes) -> None:
    """A little now and then, for three times as long as the client may take, or until it closes."""
    request.wfile.write(head)
    for _ in range(600):
        request.wfile.write(piece)
        time.sleep(0.1)


def test_fields_that_the_client_does_not_know_are_for_later_releases(
    deployment: Deployment, relay_folder: Path
) -> None:
    tokens: list[Token] = []

    def answer(request: Request) -> None:
        body = json.dumps({"result": "ok", "stored_at": [1, 2]}).encode()
        respond(request, body, Message_Id=tokens[0].message_id.hex(), Served_By="a\x1b[2Jb")

    with client_of(deployment, relay_folder, answer) as client:
        tokens.append(client.seal("hello"))
        receipt = client.send_token(tokens[0])
    assert receipt.tries == 1
    assert receipt.served_by == "a\\x1b[2Jb"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda request: respond(request, b"ok"), _NOT_OURS),
        (lambda request: respond(request, b'["result", "ok"]'), _NOT_OURS),
        (lambda request: respond(request, b'{"result": "ok"}'), _NOT_OURS),
        (lambda request: respond(request, b"[" * 60_000), _NOT_OURS),
        (lambda request: respond(request, b"9" * 60_000), _NOT_OURS),
        (lambda request: respond(request, b" " * 70_000), _TOO_LONG),
        (lambda request: flood(request, b"HTTP/1.1 200 OK\r\n\r\n"), _TOO_LONG),
        (
            lambda request: flood(request, b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n"),
            _TOO_LONG,
        ),
        (lambda request: respond(request, b"", 302, Location="http://["), "302"),
        (lambda request: respond(request, b"{}", Content_Length="3"), "closed"),
        (lambda request: respond(request, b"{}", Content_Encoding="gzip"), "closed"),
        (lambda request: respond(request, b"{}", length=1000), "answer"),
        (lambda request: respond(request, b"{}", Transfer_Encoding="chunked"), "answer"),
        (lambda request: request.wfile.write(b"\xff" * 100), "answer"),
        (
            lambda request: drip(request, b"HTTP/1.1 200 OK\r\nX: ", b"xxx"),
            "answer",
        ),
        (
            lambda request: drip(request, b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" "),
            "answer",
        ),
        (
            lambda request: drip(request, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            "answer",
        ),
    ],
)
def test_answer_that_acknowledges_nothing_ends_in_time(
    deployment: Deployment,
    relay_folder: Path,
    answer: Callable[[Request], None],
    reason: str,
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told: list[str] = []
    with client_of(deployment, relay_folder, answer, told.append) as client:
        began = time.monotonic()
        with pytest.raises(Unreachable) as ended:
            client.send("hello")
        assert time.monotonic() - began < _SOON
    # Of one of its tries: on a busy machine another may end for want of time.
    assert any(reason in line for line in (*told, str(ended.value)))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, "KiB"


def test_what_the_other_side_says_cannot_write_to_a_terminal(
    deployment: Deployment, relay_folder: Path
) -> None:
    body = json.dumps({"detail": "too \x1b]0;large\x07"}).encode()
    with (
        client_of(deployment, relay_folder, lambda request: respond(request, body, 413)) as client,
        pytest.raises(MessageRefused) as refused,
    ):
        client.send("hello")
    assert "too \\x1b]0;large\\x07" in str(refused.value)


def test_keys_that_everybody_can_read_are_told(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    config = deployment.client_config("client1")
    key = config.with_name("key.pem")
    with caplog.at_level(logging.WARNING):
        Client.from_file(config).close()
        assert not caplog.records
        key.chmod(0o604)
        try:
            Client.from_file(config).close()
        finally:
            key.chmod(0o600)
    assert [record.message for record in caplog.records] == [
        f"every user of this machine can read {key}: run chmod o= on it"
    ]


def test_a_try_that_the_deadline_cuts_short_hides_no_reason(
    deployment: Deployment, relay_folder: Path
) -> None:
    answers = iter([lambda request: respond(request, b"ok")])

    def answer(request: Request) -> None:
        next(answers, lambda request: drip(request, b"HTTP/1.1 200 OK\r\n\r\n", b" "))(request)

    with (
        client_of(deployment, relay_folder, answer) as client,
        pytest.raises(Unreachable, match=f"after 2 tries; the last: .*{_NOT_OURS}"),
    ):
        client.send("hello")
