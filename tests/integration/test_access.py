"""Who gets in: both hops, both directions. Beside every refused peer, a good one is let in."""

from __future__ import annotations

import base64
import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealrelay.client import Client
from sealrelay.config import CoordinatorSettings, ServerAddress, load_settings
from sealrelay.credentials import Credentials
from sealrelay.dispatch import Message
from sealrelay.dispatch.connection import ServerConnection, ServerFailed
from sealrelay.errors import CertificateRefused
from sealrelay.identity import MAY_CALL, Endpoint, Identity, Role
from sealrelay.tls import TlsFiles, TlsSet
from tests.integration.test_messages import assert_problem, seal
from tests.support.deployment import PATIENCE, Deployment, Service
from tests.support.http import Answer, ask, make_context, open_connection, post_json
from tests.support.pki import (
    CLIENT_ONLY,
    TRUST_DOMAIN,
    Authority,
    Leaf,
    spiffe_id,
)

GOOD_URI = spiffe_id("client", "client1")
COORDINATOR_URI = spiffe_id("coordinator", "coordinator1")
_HOUR = datetime.timedelta(hours=1)


def service_of(deployment: Deployment, role: Role) -> Service:
    return deployment.coordinator if role is Role.COORDINATOR else deployment.servers[0]


def good_leaf(deployment: Deployment, service: Service) -> Path:
    """The folder of a leaf that may call this service's main endpoint."""
    if service is deployment.coordinator:
        return deployment.client_config("client1").parent
    return deployment.coordinator.config.parent


def send_to(deployment: Deployment, service: Service, peer: Path | ssl.SSLContext) -> Answer:
    """What the services are for: a message, by whichever endpoint this one has for it."""
    token = seal(deployment).text
    if service is deployment.coordinator:
        return post_json(service, peer, "/api/data", {"data": token})
    return post_json(
        service, peer, "/api/batch", {"messages": [{"client": "client1", "data": token}]}
    )


def assert_good_peer_gets_in(deployment: Deployment, service: Service) -> None:
    assert send_to(deployment, service, good_leaf(deployment, service)).status == 200


@pytest.fixture(params=[Role.COORDINATOR, Role.SERVER], ids=["coordinator", "server"])
def service(request: pytest.FixtureRequest, deployment: Deployment) -> Service:
    return service_of(deployment, request.param)


def refused_in_handshake(service: Service, context: ssl.SSLContext) -> ssl.SSLError:
    """The alert that ends the connection. In TLS 1.3 a client sees it when it first reads."""
    with pytest.raises(ssl.SSLError) as refused:
        ask(service, context, "GET", "/healthz")
    return refused.value


def test_refused_peer_hears_why_though_it_goes_on_sending(
    deployment: Deployment, service: Service, tmp_path: Path
) -> None:
    """A connection that is closed with unread data is reset, and the alert is lost with it."""
    folder = Authority("Another CA").issue(tmp_path / "peer", Leaf([GOOD_URI]))
    (folder / "ca.pem").write_bytes(deployment.authority.pem)
    context = make_context(folder)
    heard = []
    for _ in range(30):
        with (
            socket.create_connection(("127.0.0.1", service.port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            try:
                for _ in range(10):
                    connection.sendall(b"x" * 1000)
                    time.sleep(0.002)
                connection.recv(1)
            except ssl.SSLError as error:
                heard.append(error.reason)
            except OSError as error:
                heard.append(str(error))
    assert heard == ["TLSV1_ALERT_UNKNOWN_CA"] * 30


def test_no_session_is_given_that_would_skip_the_certificate_check(
    deployment: Deployment, service: Service
) -> None:
    context = make_context(good_leaf(deployment, service))
    with (
        socket.create_connection(("127.0.0.1", service.port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(8) == b"HTTP/1.1"
        assert connection.session is None or not connection.session.has_ticket


def test_plain_http_is_not_spoken(deployment: Deployment, service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := plain.recv(4096):
                answer += chunk
    assert b"HTTP" not in answer
    assert_good_peer_gets_in(deployment, service)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("endpoint", list(Endpoint), ids=lambda endpoint: endpoint.name)
def test_each_role_reaches_what_it_may_call_and_nothing_else(
    deployment: Deployment, endpoint: Endpoint, role: Role
) -> None:
    where, method, path = endpoint.value
    service = service_of(deployment, where)
    answer = ask(
        service,
        deployment.issue(role.value, "somebody"),
        method,
        path,
        b"{}" if method == "POST" else None,
        [("Content-Type", "application/json"), ("Content-Length", "2")] * (method == "POST"),
    )
    if role in MAY_CALL[endpoint]:
        assert answer.status in (200, 400)  # let in, and then told that {} is no message
    else:
        assert_problem(answer, 403, "role-not-allowed")


def test_what_a_peer_says_of_itself_is_not_believed(deployment: Deployment) -> None:
    operator = deployment.issue("operator", "op1")
    token = seal(deployment).text
    said = [("Client-Cert", "x"), ("X-Role", "client"), ("X-Forwarded-For", "127.0.0.1")]
    answer = post_json(deployment.coordinator, operator, "/api/data", {"data": token}, said)
    assert_problem(answer, 403, "role-not-allowed")


# A server's /api/data, for standard proxies that stand in for the coordinator


def forwarded(folder: Path) -> str:
    """The Client-Cert header (RFC 9440) for the leaf in a folder."""
    certificate = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
    return f":{base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()}:"


def forward(
    deployment: Deployment, proxy: Path, token: str, *headers: str, server: int = 0
) -> Answer:
    names = [("Client-Cert", header) for header in headers]
    service = deployment.servers[server]
    return post_json(service, proxy, "/api/data", {"data": token}, names)


def test_proxy_with_the_coordinator_role_may_forward_a_client(deployment: Deployment) -> None:
    proxy = deployment.issue("coordinator", "proxy")
    client = deployment.client_config("client1").parent
    token = seal(deployment)
    answer = forward(deployment, proxy, token.text, forwarded(client))
    assert (answer.status, answer.json()) == (200, {"result": "ok"})
    assert answer.headers["Message-Id"] == token.message_id.hex()
    assert answer.headers["Served-By"] == "server1"
    assert "Idempotent-Replayed" not in answer.headers
    again = forward(deployment, proxy, token.text, forwarded(client), server=1)
    assert (again.status, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert deployment.stored_ids("client1").count(token.message_id.hex()) == 1


def test_forwarded_client_decides_over_the_keyring(deployment: Deployment) -> None:
    proxy = deployment.issue("coordinator", "proxy")
    other = deployment.client_config("client2").parent
    token = seal(deployment, client="client1").text
    assert_problem(forward(deployment, proxy, token, forwarded(other)), 422, "token-refused")


@pytest.mark.parametrize("role", ["client", "server", "operator"])
def test_nobody_else_may_forward(deployment: Deployment, role: str) -> None:
    client = deployment.client_config("client1").parent
    peer = deployment.issue(role, "proxy")
    answer = forward(deployment, peer, seal(deployment).text, forwarded(client))
    assert_problem(answer, 403, "role-not-allowed")


@pytest.mark.parametrize("role", ["server", "coordinator", "operator"])
def test_only_a_client_can_be_forwarded(deployment: Deployment, role: str) -> None:
    proxy = deployment.issue("coordinator", "proxy")
    leaf = deployment.issue(role, "client1")
    answer = forward(deployment, proxy, seal(deployment).text, forwarded(leaf))
    assert_problem(answer, 403, "role-not-allowed")


def test_client_of_another_trust_domain_cannot_be_forwarded(
    deployment: Deployment, tmp_path: Path
) -> None:
    proxy = deployment.issue("coordinator", "proxy")
    leaf = Leaf([spiffe_id("client", "client1", "other.internal")])
    folder = deployment.authority.issue(tmp_path, leaf)
    answer = forward(deployment, proxy, seal(deployment).text, forwarded(folder))
    assert_problem(answer, 403, "role-not-allowed")


def test_header_that_is_not_one_certificate_is_malformed(
    deployment: Deployment, tmp_path: Path
) -> None:
    proxy = deployment.issue("coordinator", "proxy")
    good = forwarded(deployment.client_config("client1").parent)
    token = seal(deployment).text
    nameless = forwarded(deployment.authority.issue(tmp_path, Leaf([])))
    headers: list[tuple[str, ...]] = [
        (),
        ("",),
        (":",),
        ("::",),
        (good[1:-1],),
        (good[:-1],),
        (f"({good[1:-1]})",),
        (good[:-40] + ":",),
        (":" + "A" * 400 + ":",),
        (":not base64!:",),
        # What HAProxy, nginx and Caddy make of the certificate of a client that showed none: "::",
        # nothing, and the placeholder itself.
        (":{http.request.tls.client.certificate_der_base64}:",),
        ("{http.request.tls.client.certificate_der_base64}",),
        (":\xe9\xe9:",),
        (f"{good}, {good}",),
        (good, good),
        (good, "x"),
        (f"{good};q=1",),
        (nameless,),
    ]
    for values in headers:
        answer = forward(deployment, proxy, token, *values)
        assert_problem(answer, 400, "malformed")
    assert forward(deployment, proxy, token, good).status == 200


def test_header_plays_no_part_in_a_batch(deployment: Deployment) -> None:
    """There the coordinator says itself whose each message is."""
    token = seal(deployment).text
    batch = {"messages": [{"client": "client1", "data": token}]}
    other = forwarded(deployment.client_config("client2").parent)
    for header in ("::", other):
        answer = post_json(
            deployment.servers[0],
            deployment.coordinator.config.parent,
            "/api/batch",
            batch,
            [("Client-Cert", header)],
        )
        assert [outcome["status"] for outcome in answer.json()["outcomes"]] == [200]


# The other direction: whom clients and coordinators believe


def tls_files(folder: Path) -> TlsFiles:
    cert, key, ca = (str(folder / f"{name}.pem") for name in ("cert", "key", "ca"))
    return TlsFiles(cert, key, ca)


@contextlib.contextmanager
def impostor(folder: Path) -> Iterator[int]:
    """Somebody who accepts TLS with the leaf of ``folder``; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    got: list[bytes] = []

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), plain:
                plain.settimeout(PATIENCE)
                with context.wrap_socket(plain, server_side=True) as connection:
                    if chunk := connection.recv(4096):
                        got.append(chunk)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)
    assert got == [], "something was sent to whom it was not for"


@contextlib.contextmanager
def client_towards(deployment: Deployment, *ports: int) -> Iterator[Client]:
    folder = deployment.client_config("client1").parent
    config = folder / "other.toml"
    urls = [f"https://127.0.0.1:{port}" for port in ports]
    written = deployment.write_client(
        folder, "client1", *urls, file=config.name, deadline=PATIENCE / 6
    )
    with Client.from_file(written) as client:
        yield client


@pytest.mark.parametrize(
    ("leaf", "fact"),
    [
        (Leaf([COORDINATOR_URI], hosts=["192.0.2.1", "localhost"]), "IP address mismatch"),
        (Leaf([COORDINATOR_URI], hosts=[]), "IP address mismatch"),
        (Leaf([COORDINATOR_URI], hosts=["*", "*.0.0.1"]), "IP address mismatch"),
        (Leaf([COORDINATOR_URI], usages=CLIENT_ONLY), "purpose"),
        (Leaf([COORDINATOR_URI], starts=-2 * _HOUR, ends=-_HOUR / 60), "expired"),
        (Leaf([COORDINATOR_URI], starts=_HOUR, ends=2 * _HOUR), "not yet valid"),
        (Leaf([spiffe_id("server", "server1")]), "not a coordinator of ours"),
        (Leaf([GOOD_URI]), "not a coordinator of ours"),
        (Leaf([spiffe_id("coordinator", "c", "other.internal")]), "not a coordinator of ours"),
        (Leaf([]), "not a coordinator of ours"),
        (Leaf([COORDINATOR_URI, COORDINATOR_URI]), "not a coordinator of ours"),
    ],
    ids=[
        "other host",
        "no host",
        "wildcard",
        "client usage",
        "expired",
        "not yet valid",
        "server",
        "client",
        "other trust domain",
        "no URI",
        "two URIs",
    ],
)
def test_client_refuses_who_is_not_the_coordinator(
    deployment: Deployment, tmp_path: Path, leaf: Leaf, fact: str
) -> None:
    folder = deployment.authority.issue(tmp_path, leaf)
    with (
        impostor(folder) as port,
        client_towards(deployment, port) as client,
        pytest.raises(CertificateRefused, match=fact) as refused,
    ):
        client.send("hello")
    assert f"https://127.0.0.1:{port}" in str(refused.value)
    with client_towards(deployment, deployment.coordinator.port) as client:
        assert client.send("hello").tries == 1


@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["localhost.example"], ["*"], ["*.localhost"]])
def test_client_refuses_a_leaf_for_another_host_name(
    deployment: Deployment, tmp_path: Path, hosts: list[str]
) -> None:
    config = deployment.client_config("client1").with_name("by-name.toml")
    refusing = deployment.authority.issue(tmp_path / "bad", Leaf([COORDINATOR_URI], hosts=hosts))
    with impostor(refusing) as port:
        url = f"https://localhost:{port}"
        deployment.write_client(config.parent, "client1", url, file=config.name)
        with Client.from_file(config) as client, pytest.raises(CertificateRefused) as refused:
            client.send("hello")
    assert "Hostname mismatch" in str(refused.value)
    url = f"https://localhost:{deployment.coordinator.port}"
    deployment.write_client(config.parent, "client1", url, file=config.name)
    with Client.from_file(config) as client:
        assert client.send("hello").tries == 1


def test_client_refuses_a_coordinator_of_a_foreign_ca(
    deployment: Deployment, tmp_path: Path
) -> None:
    folder = Authority(name=deployment.authority.name).issue(tmp_path, Leaf([COORDINATOR_URI]))
    with (
        impostor(folder) as port,
        client_towards(deployment, port) as client,
        pytest.raises(CertificateRefused, match="certificate is refused"),
    ):
        client.send("hello")


def test_client_passes_over_an_impostor_to_the_coordinator(
    deployment: Deployment, tmp_path: Path
) -> None:
    folder = deployment.authority.issue(tmp_path, Leaf([spiffe_id("server", "server1")]))
    with (
        impostor(folder) as port,
        client_towards(deployment, port, deployment.coordinator.port) as client,
    ):
        assert client.send("hello").tries == 2


@contextlib.contextmanager
def lane_to(deployment: Deployment, port: int) -> Iterator[ServerConnection]:
    """The coordinator's way to server1, which it is told to find on this port."""
    settings = load_settings(deployment.coordinator.config, CoordinatorSettings)
    connection = ServerConnection(
        ServerAddress("server1", f"https://127.0.0.1:{port}"),
        Identity(TRUST_DOMAIN, Role.SERVER, "server1"),
        Credentials(settings),
    )
    yield connection
    connection.close()


@pytest.mark.parametrize(
    ("leaf", "fact"),
    [
        (Leaf([spiffe_id("server", "server2")]), "server/server2, not "),
        (Leaf([spiffe_id("coordinator", "server1")]), "coordinator/server1, not "),
        (Leaf([spiffe_id("server", "server1", "other.internal")]), "other.internal"),
        (Leaf([]), "0 URI SANs"),
        (Leaf([spiffe_id("server", "server1")], hosts=["192.0.2.1"]), "IP address mismatch"),
        (Leaf([spiffe_id("server", "server1")], starts=-2 * _HOUR, ends=-_HOUR / 60), "expired"),
        (Leaf([spiffe_id("server", "server1")], usages=CLIENT_ONLY), "purpose"),
    ],
    ids=["name", "role", "trust domain", "no URI", "host", "expired", "usage"],
)
def test_coordinator_refuses_who_is_not_the_server(
    deployment: Deployment, tmp_path: Path, leaf: Leaf, fact: str
) -> None:
    token = seal(deployment)
    message = Message(token.message_id, "client1", token.text, deadline=0.0)
    folder = deployment.authority.issue(tmp_path, leaf)
    with impostor(folder) as port, lane_to(deployment, port) as lane:
        for _ in range(2):  # and a second try does not find a door left open
            with pytest.raises(ServerFailed, match=fact):
                lane.send_batch([message], PATIENCE)
            with pytest.raises(ServerFailed, match=fact):
                lane.probe(PATIENCE)
    with lane_to(deployment, deployment.servers[0].port) as lane:
        (outcome,) = lane.send_batch([message], PATIENCE)
        assert outcome.status == 200


def test_impostor_of_a_server_gets_no_message_and_the_right_ones_get_them_all(
    deployment: Deployment, tmp_path: Path
) -> None:
    leaf = Leaf([spiffe_id("server", "server9")])
    with impostor(deployment.authority.issue(tmp_path / "impostor", leaf)) as port:
        coordinator = deployment.make_coordinator("coordinator1", tmp_path / "coordinator1")
        text = coordinator.config.read_text()
        coordinator.config.write_text(text.replace(f":{deployment.servers[0].port}", f":{port}"))
        coordinator.start()
        try:
            with client_towards(deployment, coordinator.port) as client:
                assert {client.send("hello").served_by for _ in range(6)} == {"server2"}
            failed = f"Server https://127.0.0.1:{port} failed: it is spiffe://"
            coordinator.await_line(failed)
        finally:
            coordinator.stop()


def test_our_own_contexts_hold_what_these_tests_rely_on(deployment: Deployment) -> None:
    context = TlsSet(tls_files(deployment.servers[0].config.parent)).make_server_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert context.verify_flags & ssl.VERIFY_X509_STRICT


# Strangers: what anybody can do who reaches the port


def test_peers_that_say_nothing_keep_nobody_out(deployment: Deployment, service: Service) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(60):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port), PATIENCE)
            )
            if number % 2:
                sock.sendall(b"\x16\x03\x01")  # the beginning of a ClientHello
        assert_good_peer_gets_in(deployment, service)


def test_peer_that_says_nothing_is_let_go(deployment: Deployment) -> None:
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), PATIENCE))
            for service in deployment.services
        ]
        for sock in silent:
            assert sock.recv(1) == b""


def test_peers_that_leave_at_once_leave_no_trace(deployment: Deployment, service: Service) -> None:
    for _ in range(20):
        sock = socket.create_connection(("127.0.0.1", service.port), PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()  # a reset, as a port scanner does it
    with open_connection(service, good_leaf(deployment, service)):
        pass
    assert_good_peer_gets_in(deployment, service)
    assert "Traceback" not in service.log
