"""Who is let in on the real ports. Beside each refusal a good peer proves what it was about."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.lab.peers import CLIENT1, COORDINATOR, SERVER, Peer, seal
from tests.support.node import Node
from tests.support.pki import BOTH, CLIENT_ONLY, Authority, Leaf, spiffe_id

_GOOD = {5001: COORDINATOR, 5002: COORDINATOR, 8000: CLIENT1}
_EVERY_PORT = pytest.mark.parametrize("port", _GOOD)
_JSON = {"Content-Type": "application/json"}


def _assert_good_peer_is_let_in(node: Node, port: int) -> None:
    answer = Peer(node, _GOOD[port]).shake_hands(port)
    assert answer.accepted, answer


@_EVERY_PORT
def test_peer_without_certificate_is_refused(node: Node, port: int) -> None:
    _assert_good_peer_is_let_in(node, port)
    answer = Peer(node, None).shake_hands(port)
    assert not answer.accepted
    assert "certificate required" in answer.error.lower().replace("_", " "), answer


@_EVERY_PORT
def test_peer_of_a_foreign_ca_with_our_cas_name_is_refused(
    node: Node, port: int, scratch: str, tmp_path: Path
) -> None:
    ours = x509.load_pem_x509_certificate(node.read(f"{CLIENT1}/ca.pem").encode())
    (name,) = ours.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert isinstance(name.value, str)
    role = "client" if port == 8000 else "coordinator"
    owner = "client1" if port == 8000 else "node1"
    leaf = Leaf([spiffe_id(role, owner)], usages=CLIENT_ONLY if port == 8000 else BOTH)
    folder = Authority(name.value).issue(tmp_path / f"{role}-{owner}", leaf)
    forged = node.copy(folder, scratch)

    _assert_good_peer_is_let_in(node, port)
    answer = Peer(node, forged).shake_hands(port)
    assert not answer.accepted
    # Both name the fact: the signature is not our CA's.
    said = answer.error.lower().replace("_", " ")
    assert "unknown ca" in said or "decrypt error" in said, answer


@_EVERY_PORT
def test_tls_1_2_is_refused(node: Node, port: int) -> None:
    _assert_good_peer_is_let_in(node, port)
    answer = Peer(node, _GOOD[port]).shake_hands(port, maximum_tls="TLSv1_2")
    assert not answer.accepted
    assert "protocol version" in answer.error.lower().replace("_", " "), answer


@_EVERY_PORT
def test_plain_http_is_not_answered(node: Node, port: int) -> None:
    request = r"GET /healthz HTTP/1.0\r\n\r\n"
    script = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{request}' >&3; cat <&3"
    done = node.try_run("timeout", "20", "bash", "-c", script)
    assert "HTTP/1" not in done.stdout


@pytest.mark.parametrize("port", [5001, 5002])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/batch"), ("POST", "/api/data"), ("GET", "/healthz")]
)
def test_client_may_call_nothing_on_a_server(node: Node, port: int, method: str, path: str) -> None:
    assert Peer(node, COORDINATOR).ask(port, "GET", "/healthz").status == 200
    answer = Peer(node, CLIENT1).ask(port, method, path, body="{}", headers=_JSON)
    assert answer.status == 403
    assert answer.problem["type"] == "urn:sealrelay:problem:role-not-allowed"


@pytest.mark.parametrize("folder", [SERVER, COORDINATOR])
def test_only_a_client_may_hand_messages_to_the_coordinator(node: Node, folder: str) -> None:
    token = seal(node, "role test")
    answer = Peer(node, folder).post(token)
    assert answer.status == 403
    assert answer.problem["type"] == "urn:sealrelay:problem:role-not-allowed"
    answer = Peer(node, CLIENT1).post(token)
    assert answer.status == 200
    assert answer.header("Idempotent-Replayed") is None, "the refused one was not stored"


def test_a_server_may_not_hand_batches_to_another(node: Node) -> None:
    answer = Peer(node, SERVER).ask(5002, "POST", "/api/batch", body="{}", headers=_JSON)
    assert answer.status == 403
    answer = Peer(node, COORDINATOR).ask(5002, "POST", "/api/batch", body="{}", headers=_JSON)
    assert answer.status == 400, "let in, and the batch is no batch"


def test_a_server_in_the_coordinators_place_gets_no_message(node: Node, scratch: str) -> None:
    """A client sends only to a coordinator: a server's leaf of our own CA is not enough."""
    node.shell(f"cp -a {CLIENT1}/. {scratch}/ && sed -i 's#{CLIENT1}#{scratch}#' {scratch}/*.toml")
    node.shell(f"sed -i 's/:8000/:5001/' {scratch}/client.toml")
    done = node.try_run("sealrelay", "send", "--config", f"{scratch}/client.toml", "who are you")
    assert done.returncode == 4, done.stderr
    assert "not a coordinator" in done.stderr
