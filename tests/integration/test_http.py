"""Services end TLS connections as RFC 8446 has it, and answer each request once (RFC 9112)."""

from __future__ import annotations

import re
import socket
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
        self.tls = make_context(folder).wrap_socket(
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


