"""Strangers and clumsy clients at the door: who belongs here gets in beside all of them."""

from __future__ import annotations

import contextlib
import http.client
import re
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealrelay.door import HANDSHAKE_DEADLINE
from tests.conftest import Deployments
from tests.support import strangers
from tests.support.deployment import PATIENCE, Deployment, Service, wait_until
from tests.support.http import make_context, open_connection
from tests.support.metrics import scrape
from tests.support.pki import Authority, Leaf, spiffe_id
from tests.support.strangers import Manners, Party, Strangers

NUMBER = 100
"""Strangers of a kind, and all the places that the services here have: each kind alone, and any
connection that stays, would fill them."""
FEW = 8
REFUSED = "sealrelay_refused_connections_total"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with few places, so that few connections are a flood."""
    made = Deployment(tmp_path_factory.mktemp("door") / "deployment")
    for service in made.services:
        limit(service, max_connections=NUMBER, max_connections_per_peer=FEW)
    foreign = Authority("Foreign CA")
    foreign.issue(made.folder / "foreign", Leaf([spiffe_id("client", "client1")]))
    made.start()
    yield made
    made.stop()


def limit(service: Service, **settings: int) -> None:
    """Add settings to a service's file."""
    lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
    service.config.write_text(lines + service.config.read_text())


def manners_of(kind: str, deployment: Deployment, service: Service) -> Manners:
    leaf = deployment.folder / "client-client2"
    match kind:
        case "silent":
            return strangers.silent()
        case "half a ClientHello":
            return strangers.half_hello()
        case "slow ClientHello":
            return strangers.slow_hello()
        case "no leaf":
            return strangers.handshake(make_context(leaf, with_leaf=False))
        case "foreign leaf":
            context = make_context(leaf, with_leaf=False)
            foreign = deployment.folder / "foreign"
            context.load_cert_chain(foreign / "cert.pem", foreign / "key.pem")
            return strangers.handshake(context)
        case "slow head":
            return strangers.slow_head(leaf)
    coordinator = service.kind == "coordinator"
    leaf = leaf if coordinator else deployment.issue("coordinator", "other")
    return strangers.slow_body(leaf, "/api/data" if coordinator else "/api/batch")


KINDS = [
    "silent",
    "half a ClientHello",
    "slow ClientHello",
    "no leaf",
    "foreign leaf",
    "slow head",
    "slow body",
]


def ask_health(deployment: Deployment, service: Service, source: str) -> int:
    """Ask a service of ours as an operator would, on a connection of its own, with one try."""
    context = make_context(deployment.issue("operator", "alice"))
    connection = http.client.HTTPSConnection(
        "127.0.0.1", service.port, context=context, timeout=PATIENCE, source_address=(source, 0)
    )
    with contextlib.closing(connection):
        connection.request("GET", "/healthz")
        return connection.getresponse().status


@pytest.mark.parametrize("victim", ["server", "coordinator"])
def test_who_belongs_gets_in_beside_strangers(small: Deployment, victim: str) -> None:
    service = small.servers[0] if victim == "server" else small.coordinator
    parties = [Party(service.port, manners_of(kind, small, service), NUMBER) for kind in KINDS]
    with Strangers(*parties, rate=300):
        wait_until(lambda: all(party.opened >= NUMBER for party in parties), "they are there")
        for _ in range(5):
            assert ask_health(small, service, "127.0.0.2") == 200
        # From the strangers' own address too, but a slow machine may need more tries: where there
        # are more handshakes than it can do, the last that came is the next, and that is luck.
        with small.client() as client:
            client.send("beside strangers")
        wait_until(lambda: all(party.closed >= NUMBER for party in parties), "they are shown out")


@pytest.mark.parametrize("kind", ["silent", "half a ClientHello", "slow ClientHello"])
def test_handshake_has_a_deadline(small: Deployment, kind: str) -> None:
    service = small.coordinator
    mark = len(service.log)
    party = Party(service.port, manners_of(kind, small, service), 1)
    before = scrape(small, service)
    began = time.monotonic()
    with Strangers(party):
        wait_until(lambda: party.closed > 0, "the stranger is shown out")
    assert time.monotonic() - began >= HANDSHAKE_DEADLINE
    service.await_line("handshake not done in time", mark=mark)
    assert scrape(small, service).grown(before, REFUSED, reason="too-slow") >= 1


def test_oldest_stranger_of_an_address_goes_when_there_are_too_many(
    deployments: Deployments,
) -> None:
    made = deployments.make()
    service = made.coordinator
    limit(service, max_handshakes_per_peer=FEW)
    made.start()
    with contextlib.ExitStack() as stack:

        def connect(source: str) -> socket.socket:
            sock = socket.create_connection(("127.0.0.1", service.port), PATIENCE, (source, 0))
            return stack.enter_context(sock)

        other = connect("127.0.0.2")
        crowd = [connect("127.0.0.3") for _ in range(FEW)]
        connect("127.0.0.3")
        assert crowd[0].recv(1) == b""
        line = "Refused 127.0.0.3: handshake not done when others came"
        service.await_line(line)
        assert service.log.count("when others came") == 1
        assert scrape(made, service)(REFUSED, reason="crowded") == 1
        # it can still shake hands, so long as its own deadline has not passed
        with contextlib.suppress(OSError):
            make_context(made.folder / "client-client1").wrap_socket(
                other, server_hostname="127.0.0.1"
            ).close()


@pytest.mark.parametrize("victim", ["server", "coordinator"])
def test_head_of_a_request_has_a_deadline(small: Deployment, victim: str) -> None:
    service = small.servers[0] if victim == "server" else small.coordinator
    mark = len(service.log)
    party = Party(service.port, manners_of("slow head", small, service), 1)
    with Strangers(party):
        wait_until(lambda: party.closed > 0, "the client is shown out")
    assert party.answers == {b"HTTP/1.1 408"}
    service.await_line("head of a request not there in time", mark=mark)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nX-Long: " + b"a" * 10_000 + b"\r\n\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\n" + b"X-Many: a\r\n" * 60 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 2_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"\x00" * 20_000, b"414"),
    ],
    ids=["long field", "many fields", "long target", "no HTTP"],
)
def test_huge_head_is_refused(small: Deployment, head: bytes, status: bytes) -> None:
    service = small.coordinator
    with open_connection(service, small.folder / "client-client1") as connection:
        connection.sendall(head)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(4096):
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 " + status)


def ask_on(connection: ssl.SSLSocket) -> bytes:
    """One request on a kept-alive connection; the first bytes of the answer, none when closed."""
    answer = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
        connection.sendall(HEALTH)
        while not answer.endswith(b"}"):
            if not (chunk := connection.recv(4096)):
                break
            answer += chunk
    return answer[:12]


def test_client_with_too_many_connections_loses_its_oldest_idle_one(small: Deployment) -> None:
    service = small.coordinator
    with contextlib.ExitStack() as stack:

        def connect(client: str) -> ssl.SSLSocket:
            return stack.enter_context(open_connection(service, small.folder / client))

        other = connect("client-client2")
        leak = [connect("client-client1") for _ in range(FEW)]
        for connection in [other, *leak]:
            assert ask_on(connection) == b"HTTP/1.1 403"  # health is not for clients
        ask_on(leak[0])  # so the second has been idle for longest
        newest = connect("client-client1")
        assert ask_on(newest) == b"HTTP/1.1 403"
        assert leak[1].recv(4096) == b""
        for connection in [other, leak[0], *leak[2:]]:
            assert ask_on(connection) == b"HTTP/1.1 403"


def test_client_whose_connections_are_all_busy_gets_no_other(small: Deployment) -> None:
    service = small.coordinator
    folder = small.folder / "client-client1"
    begun = (
        b"POST /api/data HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        b"Content-Length: 500\r\nExpect: 100-continue\r\n\r\n"
    )
    mark = len(service.log)
    with contextlib.ExitStack() as stack:
        for _ in range(FEW):
            busy = stack.enter_context(open_connection(service, folder))
            busy.sendall(begun)
            assert busy.recv(4096).startswith(b"HTTP/1.1 100 ")
        with open_connection(service, folder) as another:
            assert ask_on(another) == b""
        service.await_line("no place for another connection of client/client1", mark=mark)
        with small.client("client2") as client:
            assert client.send("beside a busy client").tries == 1


def test_where_all_places_are_taken_who_has_most_gives_one(deployments: Deployments) -> None:
    made = deployments.make()
    service = made.coordinator
    limit(service, max_connections=FEW)
    made.start()
    with contextlib.ExitStack() as stack:
        folder = made.folder / "client-client1"
        many = [stack.enter_context(open_connection(service, folder)) for _ in range(FEW)]
        for connection in many:
            assert ask_on(connection) == b"HTTP/1.1 403"
        with made.client("client2") as client:
            assert client.send("all places are taken").tries == 1
        assert many[0].recv(4096) == b""
        assert ask_on(many[-1]) == b"HTTP/1.1 403"


def test_flood_of_refusals_does_not_flood_the_log(small: Deployment) -> None:
    service = small.servers[1]
    mark = len(service.log)
    party = Party(service.port, manners_of("no leaf", small, service), NUMBER)
    with Strangers(party):
        wait_until(lambda: party.closed >= 3 * NUMBER, "the strangers are shown out")
    summary = re.compile(r"Refused (\d+) more in the last 10 s: ")

    def told() -> tuple[int, int]:
        log = service.log[mark:]
        return log.count("Refused 127.0.0.1: "), sum(map(int, summary.findall(log)))

    wait_until(lambda: sum(told()) >= 3 * NUMBER, "all refusals are told of")
    one_by_one, by_number = told()
    assert one_by_one < by_number


def test_descriptors_are_raised_to_what_is_allowed_and_places_fit(
    deployments: Deployments,
) -> None:
    made = deployments.make()
    service = made.coordinator

    def keep_low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 400))

    service.start(preexec_fn=keep_low)
    made.start()
    (worker,) = service.workers
    limits = Path(f"/proc/{worker}/limits").read_text()
    assert re.search(r"Max open files +400 +400 ", limits)
    assert "raise LimitNOFILE" in service.log
    party = Party(service.port, strangers.silent(), 3 * NUMBER)
    with Strangers(party):
        wait_until(lambda: party.opened >= 3 * NUMBER, "more connect than there are descriptors")
        with made.client() as client:
            client.send("descriptors are scarce")
    assert "Too many open files" not in service.log
