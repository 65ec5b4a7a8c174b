"""Who is revoked is out: in the handshake, on connections that are open, on both hops."""

from __future__ import annotations

import datetime
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealrelay.client import Client
from sealrelay.config import CoordinatorSettings, ServerAddress, load_settings
from sealrelay.credentials import Credentials
from sealrelay.dispatch import Message
from sealrelay.dispatch.connection import ServerConnection, ServerFailed
from sealrelay.errors import CertificateRefused
from sealrelay.identity import Identity, Role
from sealrelay.seal import Token
from tests.integration.test_access import (
    COORDINATOR_URI,
    GOOD_URI,
    assert_good_peer_gets_in,
    good_leaf,
    refused_in_handshake,
    send_to,
    service_of,
)
from tests.integration.test_messages import assert_problem, seal
from tests.integration.test_reload import Told, folder_of, replace_leaf, uri_of
from tests.support.command import run_main
from tests.support.deployment import PATIENCE, Deployment, Service, put_file, wait_until
from tests.support.http import make_context, open_connection
from tests.support.metrics import scrape
from tests.support.pki import TRUST_DOMAIN, Authority, Leaf

_HOUR = datetime.timedelta(hours=1)
_SECOND = datetime.timedelta(seconds=1)
_RELOADED = "Reloaded the TLS files"


@pytest.fixture(scope="module")
def own_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("revocation") / "deployment")
    made.publish_crl()
    made.start()
    yield made
    made.stop()


def publish(deployment: Deployment, *revoked: Path, **changes: datetime.timedelta) -> None:
    """Publish a CRL; returns when every service has it."""
    marks = [Told(service) for service in deployment.services]
    deployment.publish_crl(*revoked, **changes)
    for mark in marks:
        mark.wait_for(_RELOADED, 1)


@pytest.fixture
def deployed(own_deployment: Deployment) -> Iterator[Deployment]:
    yield own_deployment
    publish(own_deployment)
    own_deployment.settle()


@pytest.fixture(params=[Role.COORDINATOR, Role.SERVER], ids=["coordinator", "server"])
def service(request: pytest.FixtureRequest, deployed: Deployment) -> Service:
    return service_of(deployed, request.param)


@pytest.fixture
def peer(deployed: Deployment, service: Service, tmp_path: Path) -> Path:
    """A leaf that may call the service, beside the one that is in use."""
    uri = GOOD_URI if service is deployed.coordinator else COORDINATOR_URI
    return deployed.authority.issue(tmp_path / "peer", Leaf([uri]))


def request_for(deployment: Deployment, service: Service) -> bytes:
    """What ``send_to`` sends, in one piece."""
    token = seal(deployment).text
    value: dict[str, object] = {"data": token}
    path = "/api/data"
    if service is not deployment.coordinator:
        value, path = {"messages": [{"client": "client1", "data": token}]}, "/api/batch"
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_rest(connection: ssl.SSLSocket) -> bytes:
    answers = b""
    try:
        while chunk := connection.recv(65536):
            answers += chunk
    except ConnectionResetError:
        pass
    return answers


# New connections


def test_revoked_peer_is_refused_in_the_handshake(
    deployed: Deployment, service: Service, peer: Path
) -> None:
    assert send_to(deployed, service, peer).status == 200
    publish(deployed, peer)
    told = Told(service)
    alert = refused_in_handshake(service, make_context(peer))
    assert alert.reason == "SSLV3_ALERT_CERTIFICATE_REVOKED"
    told.wait_for("Refused 127.0.0.1: certificate verify failed: certificate revoked", 1)
    assert_good_peer_gets_in(deployed, service)
    publish(deployed)  # nobody is revoked for what has nothing to do with it
    assert send_to(deployed, service, peer).status == 200


def test_session_from_before_the_revocation_is_not_resumed(
    deployed: Deployment, service: Service, peer: Path
) -> None:
    context = make_context(peer)

    def connect(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", service.port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as connection,
        ):
            connection.sendall(request_for(deployed, service))
            answer = connection.recv(65536)
            assert not connection.session_reused
            return answer, connection.session

    answer, session = connect(None)
    assert answer.startswith(b"HTTP/1.1 200")
    publish(deployed, peer)
    with pytest.raises(ssl.SSLError, match="ALERT_CERTIFICATE_REVOKED"):
        connect(session)
    assert_good_peer_gets_in(deployed, service)


def test_leaf_of_a_ca_without_crl_is_refused(
    deployed: Deployment, service: Service, tmp_path: Path
) -> None:
    other = Authority("Other CA")
    uri = GOOD_URI if service is deployed.coordinator else COORDINATOR_URI
    peer = other.issue(tmp_path / "other", Leaf([uri]))
    (peer / "ca.pem").write_bytes(deployed.authority.pem)
    folder = folder_of(service)
    told = Told(service)
    put_file(folder / "ca.pem", deployed.authority.pem + other.pem)
    told.wait_for(_RELOADED, 1)
    try:
        refused_in_handshake(service, make_context(peer))
        told.wait_for("unable to get certificate CRL", 1)
        assert_good_peer_gets_in(deployed, service)
        put_file(folder / "crl.pem", deployed.authority.make_crl() + other.make_crl())
        told.wait_for(_RELOADED, 2)
        assert send_to(deployed, service, peer).status == 200
        put_file(folder / "crl.pem", other.make_crl(peer) + deployed.authority.make_crl())
        told.wait_for(_RELOADED, 3)
        alert = refused_in_handshake(service, make_context(peer))
        assert alert.reason == "SSLV3_ALERT_CERTIFICATE_REVOKED"
    finally:
        told = Told(service)
        put_file(folder / "crl.pem", deployed.authority.make_crl())
        put_file(folder / "ca.pem", deployed.authority.pem)
        told.wait_for(_RELOADED, 1)


# Open connections


def test_idle_connection_of_a_revoked_peer_is_closed(
    deployed: Deployment, service: Service, peer: Path
) -> None:
    name = "sealrelay_refused_connections_total"
    before = scrape(deployed, service)
    told = Told(service)
    with (
        open_connection(service, peer) as idle,
        open_connection(service, peer) as never_used,
        open_connection(service, good_leaf(deployed, service)) as good,
    ):
        for connection in (idle, good):
            connection.sendall(request_for(deployed, service))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        publish(deployed, peer)
        assert idle.recv(1) == never_used.recv(1) == b""
        good.sendall(request_for(deployed, service))
        assert good.recv(65536).startswith(b"HTTP/1.1 200")
    label = "client/client1" if service is deployed.coordinator else "coordinator/coordinator1"
    told.wait_for(f"Refused 127.0.0.1: certificate of {label}: it is revoked", 2)
    assert scrape(deployed, service).grown(before, name, reason="no-longer") == 2


def test_request_after_the_revocation_is_refused_on_a_busy_connection(
    deployed: Deployment, service: Service, peer: Path
) -> None:
    """Never idle, so that only the look at each request can tell."""
    first, second = request_for(deployed, service), request_for(deployed, service)
    with open_connection(service, peer) as connection:
        connection.sendall(first[:-1])
        time.sleep(0.5)  # more or less: if the request has not begun by then, it is refused, too
        publish(deployed, peer)
        connection.sendall(first[-1:] + second)
        answers = read_rest(connection)
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"403"]
    assert b"urn:sealrelay:problem:leaf-refused" in answers
    assert b"Your certificate does not count: it is revoked." in answers
    assert b"Connection: close" in answers


def test_request_of_any_other_shape_is_refused_all_the_same(
    deployed: Deployment, service: Service, peer: Path
) -> None:
    """With a field that no client of ours sends, gunicorn reads the requests, not we."""
    first = request_for(deployed, service).replace(b"Host: x", b"Host: x\r\nX-Odd: 1")
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with open_connection(service, peer) as connection:
        connection.sendall(first[:-1])
        time.sleep(0.5)  # as above
        publish(deployed, peer)
        connection.sendall(first[-1:] + get)
        answers = read_rest(connection)
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"403"]
    assert b"urn:sealrelay:problem:leaf-refused" in answers


def test_connection_whose_leaf_expires_is_closed(
    deployed: Deployment, service: Service, tmp_path: Path
) -> None:
    uri = GOOD_URI if service is deployed.coordinator else COORDINATOR_URI
    peer = deployed.authority.issue(tmp_path / "short", Leaf([uri], ends=5 * _SECOND))
    told = Told(service)
    with open_connection(service, peer) as connection:
        connection.sendall(request_for(deployed, service))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert connection.recv(1) == b""
    told.wait_for("it has expired", 1)
    assert_good_peer_gets_in(deployed, service)


# The coordinator's connections to servers


def test_revoked_server_gets_nothing_more(deployed: Deployment) -> None:
    one, two = deployed.servers
    told, told_server = Told(deployed.coordinator), Told(one)
    with deployed.client() as client:
        assert {client.send("x").served_by for _ in range(8)} == {one.name, two.name}
        publish(deployed, folder_of(one))
        told.wait_for(f"{one.url} failed: certificate verify failed: certificate revoked", 1)
        receipts = [client.send("only to the other one") for _ in range(8)]
        assert {(receipt.served_by, receipt.tries) for receipt in receipts} == {(two.name, 1)}
        probed = one.probe()
        assert probed.code == 3, "and it does not find itself healthy"
        told = Told(deployed.coordinator)
        publish(deployed)
        told.wait_for(f"Server {one.url} is healthy again", 1)
        assert {client.send("x").served_by for _ in range(8)} == {one.name, two.name}
    assert "Traceback" not in told_server.text


def test_revoked_coordinator_gets_nothing_stored(deployed: Deployment) -> None:
    told = Told(deployed.coordinator)
    publish(deployed, folder_of(deployed.coordinator))
    for server in deployed.servers:
        told.wait_for(f"Server {server.url} failed: ", 1)
    token = seal(deployed)
    answer = send_to(deployed, deployed.coordinator, good_leaf(deployed, deployed.coordinator))
    assert_problem(answer, 503, "no-healthy-server")
    said = re.compile("certificate revoked|Your certificate does not count: it is revoked", re.I)
    wait_until(lambda: said.search(told.text) is not None, "it says why")
    assert token.message_id.hex() not in deployed.stored_ids()


def make_lane(deployment: Deployment, credentials: Credentials) -> ServerConnection:
    server = deployment.servers[0]
    return ServerConnection(
        ServerAddress(server.name, server.url),
        Identity(TRUST_DOMAIN, Role.SERVER, server.name),
        credentials,
    )


def wait_for_reload(credentials: Credentials) -> None:
    before = credentials.generation

    def look() -> bool:
        credentials.look()
        return credentials.generation > before

    wait_until(look, "the new files are taken")


def message_of(token: Token) -> Message:
    return Message(token.message_id, "client1", token.text, deadline=0.0)


def test_idle_lane_outlasts_a_reload_that_leaves_both_its_ends_as_they_are(
    deployed: Deployment,
) -> None:
    coordinator = deployed.coordinator
    credentials = Credentials(load_settings(coordinator.config, CoordinatorSettings))
    lane = make_lane(deployed, credentials)
    credentials.when_changed(lane.renew)
    lane.probe(PATIENCE)
    kept = lane._sock
    deployed.publish_crl()
    wait_for_reload(credentials)
    lane.probe(PATIENCE)
    assert lane._sock is kept is not None

    replace_leaf(deployed, coordinator, "cert.pem", "key.pem")
    wait_for_reload(credentials)
    assert lane._sock is None, "the server is to see the new leaf"
    lane.probe(PATIENCE)
    assert lane._sock is not None

    publish(deployed, folder_of(deployed.servers[0]))
    wait_for_reload(credentials)
    assert lane._sock is None, "the server is revoked"


def test_lane_that_nobody_told_of_a_new_leaf_is_not_used_again(deployed: Deployment) -> None:
    credentials = Credentials(load_settings(deployed.coordinator.config, CoordinatorSettings))
    lane = make_lane(deployed, credentials)
    lane.probe(PATIENCE)
    before = lane._sock
    replace_leaf(deployed, deployed.coordinator, "cert.pem", "key.pem")
    wait_for_reload(credentials)
    lane.probe(PATIENCE)
    assert lane._sock is not before
    lane.close()


def test_lane_that_nobody_told_of_a_reload_is_not_used_again(deployed: Deployment) -> None:
    credentials = Credentials(load_settings(deployed.coordinator.config, CoordinatorSettings))
    lane = make_lane(deployed, credentials)
    (outcome,) = lane.send_batch([message_of(seal(deployed))], PATIENCE)
    assert outcome.status == 200
    publish(deployed, folder_of(deployed.servers[0]))
    wait_for_reload(credentials)
    with pytest.raises(ServerFailed, match="certificate revoked"):
        lane.send_batch([message_of(seal(deployed))], PATIENCE)


def test_lane_heeds_a_crl_whose_successor_is_overdue(deployed: Deployment) -> None:
    revoked = folder_of(deployed.servers[0])
    put_file(
        folder_of(deployed.coordinator) / "crl.pem",
        deployed.authority.make_crl(revoked, starts=-2 * _HOUR, ends=-_HOUR),
    )
    lane = make_lane(
        deployed, Credentials(load_settings(deployed.coordinator.config, CoordinatorSettings))
    )
    with pytest.raises(ServerFailed, match="it is revoked"):
        lane.send_batch([message_of(seal(deployed))], PATIENCE)


def connections_to(service: Service) -> set[int]:
    """The ports of whoever is connected to a service, see proc(5)."""
    there = f"{service.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(line[1].partition(":")[2], 16)
        for line in lines
        if line[2].endswith(f":{there}") and line[3] == "01"
    }


def test_coordinator_connects_anew_with_a_new_leaf_also_where_nothing_is_to_be_sent(
    deployed: Deployment,
) -> None:
    with deployed.client() as client:
        for _ in range(20):
            client.send("opens lanes")
    before = {server.name: connections_to(server) for server in deployed.servers}
    assert all(len(connections) > 1 for connections in before.values())  # lanes, and the probe's
    told = Told(deployed.coordinator)
    replace_leaf(deployed, deployed.coordinator, "cert.pem", "key.pem")
    told.wait_for(_RELOADED, 1)
    for server in deployed.servers:
        wait_until(
            lambda server=server: not before[server.name] & connections_to(server),  # type: ignore[misc]
            "the old connections are closed",
        )
    assert "failed" not in told.text


def test_lane_to_a_server_whose_leaf_expires_is_not_used_again(deployed: Deployment) -> None:
    server = deployed.servers[0]
    credentials = Credentials(load_settings(deployed.coordinator.config, CoordinatorSettings))
    told = Told(server)
    leaf = Leaf([uri_of(server)], ends=6 * _SECOND)
    ends = time.time() + 6
    replace_leaf(deployed, server, "cert.pem", "key.pem", leaf=leaf)
    told.wait_for(_RELOADED, 1)
    lane = make_lane(deployed, credentials)
    try:
        lane.probe(PATIENCE)
        wait_until(lambda: time.time() > ends + 1, "the leaf has expired")
        with pytest.raises(ServerFailed, match="certificate has expired"):
            lane.probe(PATIENCE)
    finally:
        told = Told(server)
        replace_leaf(deployed, server, "cert.pem", "key.pem")
        told.wait_for(_RELOADED, 1)


# Clients and operators that have a CRL


def configure_client(deployed: Deployment) -> Path:
    """client1 with a CRL that revokes nobody."""
    folder = deployed.client_config("client1").parent
    config = deployed.write_client(folder, "client1", file="crl.toml")
    config.write_text(config.read_text() + 'crl = "crl.pem"\n')
    put_file(folder / "crl.pem", deployed.authority.make_crl())
    return config


def test_client_ends_its_open_connection_to_a_revoked_coordinator(deployed: Deployment) -> None:
    config = configure_client(deployed)
    with Client.from_file(config) as client:
        client.send("opens a connection")
        crl = deployed.authority.make_crl(folder_of(deployed.coordinator))
        put_file(config.with_name("crl.pem"), crl)
        refusals: list[CertificateRefused] = []

        def is_refused() -> bool:
            try:
                client.send("over that connection, at most a few times")
            except CertificateRefused as refused:
                refusals.append(refused)
            return bool(refusals)

        wait_until(is_refused, "the connection is not used any more")
    assert "certificate revoked" in str(refusals[0])


def test_client_keeps_its_connection_until_it_has_another_leaf(deployed: Deployment) -> None:
    config = configure_client(deployed)
    with Client.from_file(config) as client:
        first = client._tls

        def send() -> set[int]:
            client.send("over an open connection")
            return connections_to(deployed.coordinator)

        before = send()
        put_file(config.with_name("crl.pem"), deployed.authority.make_crl())
        wait_until(lambda: bool(send()) and client._tls is not first, "it has the new CRL")
        assert before & send(), "the connection is the same"

        new = deployed.authority.issue(config.parent / "new", Leaf([GOOD_URI]))
        for name in ("cert.pem", "key.pem"):
            put_file(config.with_name(name), (new / name).read_bytes())
        wait_until(lambda: not before & send(), "it connects with its new leaf")


def test_client_with_a_crl_refuses_a_revoked_coordinator(deployed: Deployment) -> None:
    config = configure_client(deployed)
    folder = config.parent
    sent = run_main("send", "--config", str(config), "hello")
    assert sent.code == 0, sent.err
    put_file(folder / "crl.pem", deployed.authority.make_crl(folder_of(deployed.coordinator)))
    sent = run_main("send", "--config", str(config), "hello")
    assert sent.code == CertificateRefused.exit_code
    assert "the coordinator's certificate is refused: certificate verify failed" in sent.err
    assert "certificate revoked" in sent.err
    # and where the next CRL is overdue, and TLS no longer looks at this one
    overdue = deployed.authority.make_crl(
        folder_of(deployed.coordinator), starts=-2 * _HOUR, ends=-_HOUR
    )
    put_file(folder / "crl.pem", overdue)
    sent = run_main("send", "--config", str(config), "hello")
    assert sent.code == CertificateRefused.exit_code
    assert "this is not a coordinator of ours: it is revoked" in sent.err


# When the next CRL is overdue


def test_last_crl_goes_on_deciding_when_the_next_one_is_overdue(
    deployed: Deployment, service: Service, peer: Path
) -> None:
    told = Told(service)
    with open_connection(service, good_leaf(deployed, service)) as kept:
        publish(deployed, peer, starts=-2 * _HOUR, ends=4 * _SECOND)
        due = time.time() + 4
        alert = refused_in_handshake(service, make_context(peer))
        assert alert.reason == "SSLV3_ALERT_CERTIFICATE_REVOKED"
        while time.time() < due + 1:  # and all the time around it
            assert_good_peer_gets_in(deployed, service)
        told.wait_for(
            f"ERROR The CRL in {folder_of(service) / 'crl.pem'} has run out: what was revoked "
            "since is not known, the last known CRL goes on deciding",
            1,
        )
        answer = send_to(deployed, service, peer)
        assert_problem(answer, 403, "leaf-refused")
        assert answer.headers["Connection"] == "close"
        kept.sendall(request_for(deployed, service))
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
    next_update = scrape(deployed, service)(
        "sealrelay_crl_next_update_timestamp_seconds", file="crl"
    )
    assert next_update is not None
    assert next_update < time.time()
    assert told.text.count("has run out") == 1


def test_every_peer_is_refused_when_the_next_crl_is_overdue_where_that_is_asked_for(
    deployed: Deployment, tmp_path: Path
) -> None:
    strict = deployed.make_coordinator("coordinator9", tmp_path / "coordinator-coordinator9")
    crl = tmp_path / "coordinator-coordinator9" / "crl.pem"
    text = strict.config.read_text()
    strict.config.write_text(
        text.replace("[tls]", '[tls]\ncrl = "crl.pem"\ncrl_expired = "refuse"')
    )
    client = deployed.client_config("client1").parent
    put_file(crl, deployed.authority.make_crl(ends=_HOUR))
    strict.start()
    try:
        with open_connection(strict, client) as kept:
            told = Told(strict)
            put_file(crl, deployed.authority.make_crl(starts=-2 * _HOUR, ends=4 * _SECOND))
            told.wait_for(_RELOADED, 1)
            kept.sendall(request_for(deployed, deployed.coordinator))
            assert kept.recv(65536).startswith(b"HTTP/1.1 200")
            assert kept.recv(1) == b""
        told.wait_for("certificate of client/client1: the CRL of its CA has run out", 1)
        told.wait_for("has run out: every peer of its CA is refused; bring the next one", 1)
        alert = refused_in_handshake(strict, make_context(client))
        assert alert.reason == "SSLV3_ALERT_CERTIFICATE_EXPIRED"
        told.wait_for("CRL has expired", 1)
        put_file(crl, deployed.authority.make_crl())
        told.wait_for(_RELOADED, 2)
        with open_connection(strict, client) as again:

            def is_stored() -> bool:
                # until a probe has found the servers healthy, it knows of none
                again.sendall(request_for(deployed, deployed.coordinator))
                return again.recv(65536).startswith(b"HTTP/1.1 200")

            wait_until(is_stored, "messages are stored again")
    finally:
        strict.stop()


def test_crl_that_is_not_in_force_yet_counts_all_the_same(
    deployed: Deployment, service: Service, peer: Path
) -> None:
    """The clock of who made it may be ahead of ours."""
    publish(deployed, peer, starts=_HOUR / 60, ends=_HOUR)
    assert_good_peer_gets_in(deployed, service)
    assert_problem(send_to(deployed, service, peer), 403, "leaf-refused")
