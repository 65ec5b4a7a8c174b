"""Services end TLS connections as RFC 8446 has it, and answer each request once (RFC 9112)."""

from __future__ import annotations

import re
import socket
import ssl
import time
from pathlib import Path

import pytest

from sealrelay.identity import Role
from tests.conftest import Deployments
from tests.integration.test_access import good_leaf, service_of
from tests.support.command import run_main
from tests.support.deployment import PATIENCE, Deployment, Service, wait_until
from tests.support.http import make_context
from tests.support.wiretap import Wiretap, listen_in

HOST = b"Host: 127.0.0.1\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(params=[Role.COORDINATOR, Role.SERVER], ids=["coordinator", "server"])
def service(request: pytest.FixtureRequest, deployment: Deployment) -> Service:
    return service_of(deployment, request.param)


@pytest.fixture
def path(service: Service) -> bytes:
    """Where this service takes messages."""
    return b"/api/data" if service.kind == "coordinator" else b"/api/batch"


class Peer:
    """A connection of a good peer's, that does not take a cut connection for an ended one."""

    def __init__(self, service: Service, folder: Path) -> None:
        plain = socket.create_connection(("127.0.0.1", service.port), PATIENCE)
        context = make_context(folder)
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # which older Pythons set
        self.tls = context.wrap_socket(
            plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False
        )

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.tls.sendall(piece)

    def hear(self) -> list[int]:
        """The status of each answer until the other side ends the connection, as it should.

        Raises ssl.SSLEOFError where it was only closed.
        """
        heard = bytearray()
        with self.tls:
            while chunk := self.tls.recv(65536):
                heard += chunk
        return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", heard)]


@pytest.fixture
def peer(deployment: Deployment, service: Service) -> Peer:
    return Peer(service, good_leaf(deployment, service))


# --- the end of a connection


@pytest.mark.parametrize(
    "last",
    [
        b"GET /nothing HTTP/1.1\r\n%sConnection: close\r\n\r\n" % HOST,
        b"POST /api/data HTTP/1.1\r\n%sConnection: close\r\nContent-Length: 0\r\n\r\n" % HOST,
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n%s\r\n" % HOST,
    ],
)
def test_service_says_that_it_ends_a_connection(peer: Peer, last: bytes) -> None:
    peer.say(b"GET /nothing HTTP/1.1\r\n%s\r\n" % HOST, last)
    assert len(peer.hear()) == 2


def test_service_that_stops_says_so_on_idle_connections(deployments: Deployments) -> None:
    deployment = deployments.make()
    deployment.start()
    for service in (deployment.coordinator, deployment.servers[0]):
        peer = Peer(service, good_leaf(deployment, service))
        peer.say(b"GET /nothing HTTP/1.1\r\n%s\r\n" % HOST)
        assert peer.tls.recv(12) == b"HTTP/1.1 404"
        service.terminate()
        peer.hear()
        service.stop()


def test_end_of_a_connection_waits_for_no_peer(deployment: Deployment, service: Service) -> None:
    """Some read no more: what they are told stays in the kernel."""
    idle = [Peer(service, good_leaf(deployment, service)) for _ in range(20)]
    for peer in idle:
        peer.say(b"GET /nothing HTTP/1.1\r\n%sConnection: close\r\n\r\n" % HOST)
    began = time.monotonic()
    last = Peer(service, good_leaf(deployment, service))
    last.say(b"GET /nothing HTTP/1.1\r\n%sConnection: close\r\n\r\n" % HOST)
    assert last.hear() == [404]
    assert time.monotonic() - began < PATIENCE / 6
    for peer in idle:
        peer.tls.close()


def ends_with_close_notify(said: bytearray) -> bool:
    """Whether the last TLS record is one of an alert's size: two bytes, its type, and a tag of 16
    (RFC 8446 §5.2). No request and no answer is as short."""
    return bytes(said[-24:-19]) == b"\x17\x03\x03\x00\x13"


def asked_of(tap: Wiretap) -> list[bytearray]:
    """What came on connections whose handshake was done."""
    return [conversation.asked for conversation in tap.conversations if conversation.answered]


def assert_caller_says_its_end(tap: Wiretap) -> None:
    asked = asked_of(tap)
    assert asked
    wait_until(lambda: all(map(ends_with_close_notify, asked)), "close_notify came")


def test_sealrelays_own_callers_say_that_they_end_a_connection(
    deployments: Deployments, tmp_path: Path
) -> None:
    deployment = deployments.make()
    server = deployment.servers[0]
    with listen_in(server.port) as behind:
        coordinator = deployment.coordinator
        text = coordinator.config.read_text()
        coordinator.config.write_text(text.replace(f":{server.port}", f":{behind.port}"))
        deployment.start()
        with listen_in(coordinator.port) as before:
            folder = deployment.client_config("client1").parent
            config = deployment.write_client(
                folder, "client1", f"https://127.0.0.1:{before.port}", file="tapped.toml"
            )
            assert run_main("send", "--config", str(config), "hello").code == 0
            assert_caller_says_its_end(before)

            before.conversations.clear()
            probed = coordinator.config.with_name("probed.toml")
            text = coordinator.config.read_text()
            probed.write_text(text.replace(f":{coordinator.port}", f":{before.port}"))
            assert run_main("probe", "--config", str(probed)).code == 0
            assert_caller_says_its_end(before)

            before.conversations.clear()
            operator = deployment.operator_config(f"https://127.0.0.1:{before.port}")
            assert run_main("status", "--config", str(operator)).code == 0
            assert_caller_says_its_end(before)

        coordinator.stop()
        assert_caller_says_its_end(behind)


# --- the Host field


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"Host:\r\n",
        b"Host: \r\n",
        b"Host: a b\r\n",
        b"Host: a/b\r\n",
        b"Host: user@a\r\n",
        b"Host: a:b\r\n",
        b"Host: a:1:2\r\n",
        b"Host: :8000\r\n",
        b"Host: ::1\r\n",
        b"Host: [::1\r\n",
        b"Host: [1::2::3]:8000\r\n",
        b"Host: %zz\r\n",
        b"Host: \xe4\r\n",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nhost: b\r\n",
    ],
)
def test_request_without_one_good_host_is_refused(peer: Peer, path: bytes, fields: bytes) -> None:
    """RFC 9112 §3.2. Both where a message goes, and elsewhere."""
    peer.say(b"POST %s HTTP/1.1\r\n%s%sContent-Length: 2\r\n\r\n{}" % (path, fields, JSON))
    assert peer.hear() == [400]


@pytest.mark.parametrize("fields", [b"", b"Host: a b\r\n", b"Host: a\r\nHost: a\r\n"])
def test_host_is_asked_for_at_every_path(peer: Peer, fields: bytes) -> None:
    peer.say(b"GET /healthz HTTP/1.1\r\n%s\r\n" % fields)
    assert peer.hear() == [400]


@pytest.mark.parametrize(
    "fields",
    [
        b"Host: a\r\n",
        b"host: a.example:8000\r\n",
        b"Host: 127.0.0.1:\r\n",
        b"Host: [::1]:8000\r\n",
        b"Host: a_b~%41\r\n",
    ],
)
def test_good_host_is_taken(peer: Peer, path: bytes, fields: bytes) -> None:
    end = b"GET /nothing HTTP/1.1\r\n%sConnection: close\r\n\r\n" % fields
    peer.say(b"POST %s HTTP/1.1\r\n%s%sContent-Length: 2\r\n\r\n{}" % (path, fields, JSON), end)
    # `{}` is no message
    assert peer.hear() == [400, 404]


def test_http_1_0_needs_no_host(peer: Peer) -> None:
    peer.say(b"GET /nothing HTTP/1.0\r\n\r\n")
    with peer.tls:
        assert peer.tls.recv(12) == b"HTTP/1.0 404"


# --- one answer to one request


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


NEXT = b"GET /next HTTP/1.1\r\n%s\r\n" % HOST
"""What must not be answered while it is part of a body, and must be after one."""
SIZED = b"Content-Length: %d\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BAD_CHUNKS = [
    pytest.param(b"zz\r\n" + NEXT, id="no size"),
    pytest.param(b"5\r\nhello, world\r\n" + NEXT, id="longer than its size"),
    pytest.param(b"5;\x00\r\nhello\r\n0\r\n\r\n" + NEXT, id="bad extension"),
    pytest.param(b"0\r\nbad trailer\r\n\r\n" + NEXT, id="bad trailer"),
    pytest.param(b"0\r\nHost: a\r\n\r\n" + NEXT, id="forbidden trailer"),
    pytest.param(b"5\nhello\n0\n\n" + NEXT, id="bare LF"),
]
REFUSED = [
    pytest.param(b"POST /nothing", b"", 404, id="no such path"),
    pytest.param(b"GET /healthz", b"", None, id="GET"),
    pytest.param(b"PUT /api/data", b"", 404, id="no such method"),
    pytest.param(b"POST /api/data", b"", None, id="message"),
    pytest.param(b"POST /metrics", JSON, 404, id="POST of what is only got"),
]
_LARGE = b"x" * 300_000


@pytest.mark.parametrize("body", BAD_CHUNKS)
@pytest.mark.parametrize(("line", "fields", "status"), REFUSED)
def test_bad_body_gets_one_answer_and_ends_the_connection(
    peer: Peer, line: bytes, fields: bytes, status: int | None, body: bytes
) -> None:
    peer.say(b"%s HTTP/1.1\r\n%s%s%s\r\n" % (line, HOST, fields, CHUNKED), body)
    (answered,) = peer.hear()
    assert status in (None, answered)


@pytest.mark.parametrize("said", [NEXT, _LARGE + NEXT, NEXT * 1000], ids=["short", "long", "many"])
@pytest.mark.parametrize("framed", [SIZED, CHUNKED], ids=["sized", "chunked"])
@pytest.mark.parametrize(("line", "fields", "status"), REFUSED)
def test_body_that_nobody_wants_is_not_taken_for_requests(
    peer: Peer, line: bytes, fields: bytes, status: int | None, framed: bytes, said: bytes
) -> None:
    body = chunked(said) if framed is CHUNKED else said
    framing = framed if framed is CHUNKED else framed % len(said)
    head = b"%s HTTP/1.1\r\n%s%s%s\r\n" % (line, HOST, fields, framing)
    last = b"GET /last HTTP/1.1\r\n%sConnection: close\r\n\r\n" % HOST
    peer.say(head, body, last)
    answered = peer.hear()
    assert len(answered) == 2
    assert answered[1] == 404
    assert status in (None, answered[0])


@pytest.mark.parametrize("line", [b"POST /nothing", b"POST /api/data", b"POST /api/batch"])
def test_body_beyond_all_bounds_gets_one_answer(peer: Peer, line: bytes) -> None:
    peer.say(b"%s HTTP/1.1\r\n%s%s%s\r\n" % (line, HOST, JSON, SIZED % (1 << 40)))
    # Not more than is still read of it, or the answer might be lost.
    peer.say(*[b"x" * 65536] * 129)
    assert len(peer.hear()) == 1


def test_body_that_does_not_come_gets_one_answer(deployment: Deployment) -> None:
    """gunicorn would read it after the answer, and find a request's head that is late."""
    service = deployment.coordinator
    lines = (b"POST /nothing", b"GET /healthz", b"POST /api/data")
    peers = [Peer(service, good_leaf(deployment, service)) for _ in lines]
    for peer, line in zip(peers, lines, strict=True):
        peer.say(b"%s HTTP/1.1\r\n%s%s%s\r\nabc" % (line, HOST, JSON, SIZED % 100))
    for peer in peers:
        assert len(peer.hear()) == 1


def test_answer_is_read_by_who_still_sends(deployment: Deployment, service: Service) -> None:
    """Closing with unread data resets the connection, and the answer is lost with it."""
    for _ in range(10):
        peer = Peer(service, good_leaf(deployment, service))
        peer.say(b"nonsense\r\n\r\n")
        for _ in range(5):
            peer.say(b"x" * 1000)
            time.sleep(0.002)
        assert peer.hear() == [400]
