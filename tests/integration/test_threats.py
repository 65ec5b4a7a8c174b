"""What whoever is hostile can do, and what not, where docs/security.md says so and no other test.

Some tests show what somebody *can* do: who changes that has to change the page.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from sealrelay.client import Client
from sealrelay.errors import Unreachable
from tests.integration.test_access import COORDINATOR_URI, client_towards
from tests.integration.test_broken_builds import start_flawed
from tests.integration.test_load_generator import serve
from tests.integration.test_messages import seal
from tests.support.command import run_main
from tests.support.deployment import PATIENCE, Deployment, run_sealrelay
from tests.support.http import ask, post_json
from tests.support.pki import Leaf
from tests.support.wiretap import Conversation, listen_in

LONG = "x" * 4000
"""A message that is longer than all of a handshake."""


# Somebody on the way


def test_recorded_traffic_holds_no_name_and_no_token(deployment: Deployment) -> None:
    """But the host name that is called, the sizes and the times."""
    folder = deployment.client_config("client1").parent
    with listen_in(deployment.coordinator.port) as tap:
        url = f"https://localhost:{tap.port}"
        config = deployment.write_client(folder, "client1", url, file="tapped.toml")
        with Client.from_file(config) as client:
            token = client.seal("secret")
            client.send_token(token)
    (conversation,) = tap.conversations
    recorded = bytes(conversation.asked + conversation.answered)
    assert b"localhost" in recorded, "what is said in the clear is seen"
    secrets = [b"client1", b"coordinator1", b"spiffe", b"Test CA", b"HTTP/1.1", b"Message-Id"]
    secrets += [token.text.encode()[:16], token.message_id, b"secret"]
    assert not [secret for secret in secrets if secret in recorded]


def test_every_connection_has_a_key_exchange_of_its_own(deployment: Deployment) -> None:
    """So a leaf's key that is stolen later opens nothing that was recorded (RFC 8446 §E.1)."""
    with listen_in(deployment.coordinator.port) as tap:
        for _ in range(2):  # with a context that could resume a session
            with client_towards(deployment, tap.port) as client:
                client.send("hello")
    hellos = [read_server_hello(bytes(conversation.answered)) for conversation in tap.conversations]
    assert len(hellos) == 2
    for extensions in hellos:
        assert extensions[_SUPPORTED_VERSIONS] == b"\x03\x04"
        assert _PRE_SHARED_KEY not in extensions
    first, second = (extensions[_KEY_SHARE] for extensions in hellos)
    assert first[:2] == second[:2] == b"\x00\x17", "on P-256"
    assert len(first) == 4 + 65
    assert first != second


@pytest.mark.parametrize("what", ["message", "answer"])
def test_altered_traffic_costs_a_try_and_nothing_else(deployment: Deployment, what: str) -> None:
    altered: list[Conversation] = []

    def alter(conversation: Conversation, is_answer: bool, data: bytes) -> bytes:
        if altered or len(conversation.asked) < len(LONG) or is_answer is (what == "message"):
            return data
        altered.append(conversation)
        return data[:-1] + bytes([data[-1] ^ 1])

    with (
        listen_in(deployment.coordinator.port, alter) as tap,
        client_towards(deployment, tap.port) as client,
    ):
        receipt = client.send(LONG)
    assert len(altered) == 1
    assert receipt.tries == 2
    assert receipt.replayed is (what == "answer")
    assert deployment.stored_ids("client1").count(receipt.message_id) == 1


def test_recorded_connection_that_is_sent_again_stores_nothing(deployment: Deployment) -> None:
    with (
        listen_in(deployment.coordinator.port) as tap,
        client_towards(deployment, tap.port) as client,
    ):
        client.send(LONG)
    before = deployment.stored()
    mark = len(deployment.coordinator.log)
    with socket.create_connection(("127.0.0.1", deployment.coordinator.port), PATIENCE) as again:
        again.sendall(tap.conversations[0].asked)
        with contextlib.suppress(ConnectionResetError):
            while again.recv(65536):
                pass
    told = "Refused 127.0.0.1: "
    deployment.coordinator.await_line(told, mark=mark)
    assert deployment.stored() == before


# A coordinator


def test_what_a_coordinator_makes_up_alters_or_passes_off_as_anothers_is_refused(
    deployment: Deployment,
) -> None:
    good = seal(deployment, client="client1").text
    made_up = Fernet(Fernet.generate_key()).encrypt(b"made up").decode()
    altered = good[:60] + ("A" if good[60] != "A" else "B") + good[61:]
    hostile = deployment.coordinator.config.parent
    batch = [("client1", made_up), ("client1", altered), ("client2", good)]
    body = {"messages": [{"client": client, "data": token} for client, token in batch]}
    before = deployment.stored()
    answer = post_json(deployment.servers[0], hostile, "/api/batch", body)
    outcomes = [outcome["status"] for outcome in answer.json()["outcomes"]]
    assert outcomes == [422, 422, 422]
    assert deployment.stored() == before
    body = {"messages": [{"client": "client1", "data": good}]}
    again = [post_json(server, hostile, "/api/batch", body) for server in deployment.servers]
    replayed = [outcome.json()["outcomes"][0].get("replayed", False) for outcome in again]
    assert replayed == [False, True]
    assert deployment.stored() == before + 1


def acknowledge(request: BaseHTTPRequestHandler, message_id: str) -> None:
    body = json.dumps({"result": "ok"}).encode()
    request.send_response(200)
    for name, value in (("Message-Id", message_id), ("Served-By", "server1")):
        request.send_header(name, value)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def test_acknowledgement_of_another_message_is_not_taken(
    deployment: Deployment, tmp_path: Path
) -> None:
    deployment.authority.issue(tmp_path / "relay", Leaf([COORDINATOR_URI]))
    with (
        serve(tmp_path, lambda request: acknowledge(request, "00" * 32)) as port,
        client_towards(deployment, port) as client,
        pytest.raises(Unreachable, match="does not acknowledge this message"),
    ):
        client.send("hello")


def test_coordinator_that_acknowledges_and_stores_nothing_is_believed_until_verify(
    tmp_path: Path,
) -> None:
    """Nothing in an acknowledgement is a server's own, so a client can't tell."""
    made = Deployment(tmp_path / "deployment")
    history = tmp_path / "history"
    config = f"--config={made.client_config('client1')}"
    try:
        start_flawed(made.coordinator, "hand-nothing-on")
        done = run_sealrelay("load", str(history), config, "--rate=20", "--seconds=0.5")
    finally:
        made.stop()
    assert done.stdout.startswith("10 messages: 10 acknowledged, 0 refused, 0 without an answer,")
    found = run_main("verify", str(history), "--config", str(made.servers[0].config))
    assert found.code == 11
    assert "10 lost" in found.err


# An operator


def test_operator_learns_of_no_message_and_no_client(deployment: Deployment) -> None:
    with deployment.client() as client:
        receipt = client.send("not for operators")
    folder = deployment.operator_config().parent
    for service in deployment.services:
        paths = ["/metrics", "/healthz"]
        if service is deployment.coordinator:
            paths += ["/api/status", "/status"]
        for path in paths:
            answer = ask(service, folder, "GET", path)
            assert answer.status == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            for hidden in ("client1", receipt.message_id, "not for operators"):
                assert hidden not in answer.body.decode(), path


_SUPPORTED_VERSIONS, _PRE_SHARED_KEY, _KEY_SHARE = 43, 41, 51


def read_server_hello(answered: bytes) -> dict[int, bytes]:
    """The extensions of a ServerHello (RFC 8446 §4.1.3) that is the first that is answered."""
    assert answered[0] == 0x16, "a handshake record"
    assert answered[5] == 2, "with a ServerHello"
    at = 5 + 4 + 2 + 32  # both headers, the version, the random
    at += 1 + answered[at] + 2 + 1  # the session id, the cipher suite, the compression
    (length,) = struct.unpack_from(">H", answered, at)
    end, at = at + 2 + length, at + 2
    extensions = {}
    while at < end:
        kind, length = struct.unpack_from(">HH", answered, at)
        extensions[kind] = bytes(answered[at + 4 : at + 4 + length])
        at += 4 + length
    return extensions
