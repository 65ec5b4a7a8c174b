"""Messages on a deployed node: sent, stored once, refused, and what the journal says of them."""

from __future__ import annotations

import json
import re
import uuid

import pytest
from cryptography.fernet import Fernet

from tests.lab.peers import CLIENT1, Answer, Peer, flip_byte, message_id, read_keys, seal
from tests.support.node import COORDINATOR, SERVERS, SOCKET, Node, wait_for

_TOO_LARGE = 2 * 1024 * 1024


@pytest.fixture
def text() -> str:
    """A plaintext that is nowhere else."""
    return f"marker-{uuid.uuid4()}"


@pytest.fixture
def client1(node: Node) -> Peer:
    return Peer(node, CLIENT1)


def _count(node: Node, client: str = "client1") -> int:
    return int(node.run("sealrelay", "messages", "count", "--client", client))


@pytest.mark.parametrize("client", ["client1", "client2"])
def test_client_sends_and_the_message_is_in_the_store(node: Node, client: str, text: str) -> None:
    before = _count(node, client)
    sent = node.run("sealrelay", "send", "--client", client, "-v", text)
    match = re.fullmatch(
        rf"\[{client}\] Success: {{'result': 'ok'}} ([0-9a-f]{{64}}) by (node1-500[12])\n", sent
    )
    assert match is not None, sent
    assert _count(node, client) == before + 1
    shown = json.loads(node.run("sealrelay", "messages", "show", "--json", match[1]))
    assert (shown["text"], shown["client"], shown["server"]) == (text, client, match[2])
    listed = node.run("sealrelay", "messages", "list", "--client", client, "--limit", "1")
    assert match[1] in listed
    assert text in listed


def test_success_is_one_plain_line(node: Node) -> None:
    sent = node.run("sealrelay", "send", "--client", "client1", "plain")
    assert sent == "[client1] Success: {'result': 'ok'}\n"


def test_journals_tell_the_way_of_a_message(node: Node, text: str) -> None:
    since = node.now()
    (receipt,) = node.send(text)
    identifier, server = receipt["message_id"], receipt["served_by"]
    port = server.rpartition("-")[2]
    unit = f"sealrelay-server@{port}.service"
    stored = f"Message {identifier} from client1 stored by {server}"
    node.wait_for_journal(COORDINATOR, stored, since)
    assert re.search(f"{stored} in [0-9.]+ ms", node.journal(COORDINATOR, since=since))
    node.wait_for_journal(unit, f"Stored message {identifier} from client1", since)
    journal = node.journal(unit, since=since)
    assert f"Decrypted data: {text}" in journal.splitlines()
    assert 'access peer=coordinator/node1 "POST /api/batch" 200' not in journal


def test_decrypted_data_cannot_forge_a_line(node: Node, text: str) -> None:
    since = node.now()
    node.send(f"{text}\nStored message forged")
    wanted = f"Decrypted data: {text}\\nStored message forged"
    wait_for(lambda: wanted in node.journal(*SERVERS, since=since).splitlines(), wanted)
    lines = node.journal(*SERVERS, since=since).splitlines()
    assert "Stored message forged" not in lines


def test_token_posted_twice_is_stored_once(node: Node, client1: Peer, text: str) -> None:
    token = seal(node, text)
    before, since = _count(node), node.now()
    first, second = client1.post(token), client1.post(token)
    assert (first.status, json.loads(first.body)) == (200, {"result": "ok"})
    assert (second.status, json.loads(second.body)) == (200, {"result": "ok"})
    assert first.header("Idempotent-Replayed") is None
    assert second.header("Idempotent-Replayed") == "true"
    assert first.header("Message-Id") == second.header("Message-Id") == message_id(token)
    assert first.header("Served-By") in {node.server_name(5001), node.server_name(5002)}
    assert _count(node) == before + 1
    replayed = f"Replayed message {message_id(token)} from client1"
    wait_for(lambda: replayed in node.journal(*SERVERS, since=since), replayed)


def _assert_problem(answer: Answer, status: int, name: str) -> None:
    assert answer.status == status, answer
    assert answer.problem["status"] == status
    assert answer.problem["type"] == f"urn:sealrelay:problem:{name}"


def test_flipped_byte_is_refused(node: Node, client1: Peer, text: str) -> None:
    token = seal(node, text)
    before = _count(node)
    _assert_problem(client1.post(flip_byte(token)), 422, "token-refused")
    assert _count(node) == before
    assert client1.post(token).status == 200, "unchanged, it is accepted"


def test_plaintext_is_refused(node: Node, client1: Peer, text: str) -> None:
    before, since = _count(node), node.now()
    _assert_problem(client1.post_body(json.dumps({"data": text})), 400, "malformed")
    _assert_problem(client1.post_body(text), 400, "malformed")
    assert _count(node) == before
    assert text not in node.journal(since=since)


def test_body_above_the_limit_is_refused(node: Node, client1: Peer) -> None:
    answer = client1.ask(
        8000,
        "POST",
        "/api/data",
        body_size=_TOO_LARGE,
        headers={"Content-Type": "application/json"},
    )
    _assert_problem(answer, 413, "too-large")
    assert client1.post(seal(node, "x" * 500_000)).status == 200, "half a megabyte is accepted"


def test_token_under_a_foreign_key_is_refused_and_nobody_learns_from_it(
    node: Node, client1: Peer, text: str
) -> None:
    own_key = Fernet.generate_key()
    token = Fernet(own_key).encrypt(text.encode()).decode()
    before, since = _count(node), node.now()
    answer = client1.post(token)
    _assert_problem(answer, 422, "token-refused")
    # Not told apart from a token that was altered on the way: no oracle.
    assert answer.body == client1.post(flip_byte(seal(node, text))).body
    assert _count(node) == before
    node.wait_for_journal(COORDINATOR, '"POST /api/data" 422', since)
    journal = node.journal(since=since)
    assert message_id(token) in journal, "the operator is told"
    for hidden in (text, token, token[:40], own_key.decode()):
        assert hidden not in journal
    for key in read_keys(node.read(f"{CLIENT1}/payload.keys")):
        assert key not in journal


def test_token_of_another_client_is_refused(node: Node, client1: Peer, text: str) -> None:
    token = seal(node, text, client="client2")
    _assert_problem(client1.post(token), 422, "token-refused")
    assert Peer(node, "/etc/sealrelay/clients/client2").post(token).status == 200


def test_client_tells_refusals_apart_by_exit_code(node: Node, scratch: str) -> None:
    """Token refused 5, message too large 6, wrong settings 8, unreachable 3; and 0 beside them."""
    assert node.try_send("fine").returncode == 0
    node.shell(f"cp -a {CLIENT1}/. {scratch}/ && sed -i 's#{CLIENT1}#{scratch}#' {scratch}/*.toml")
    config = f"{scratch}/client.toml"

    def send(*arguments: str) -> tuple[int, str]:
        done = node.try_run("sealrelay", "send", "--config", config, *arguments)
        return done.returncode, done.stderr.strip()

    assert send("fine")[0] == 0
    node.run("dd", "if=/dev/zero", f"of={scratch}/large", "bs=1M", "count=2", "status=none")
    code, said = send("--file", f"{scratch}/large")
    assert code == 6, said
    node.write(f"{scratch}/payload.keys", Fernet.generate_key() + b"\n")
    code, said = send("other key")
    assert code == 5, said
    assert len(said.splitlines()) == 1
    node.shell(f"sed -i 's/:8000/:8009/; s/^deadline.*/deadline = 1.0/' {config}")
    code, said = send("nobody there")
    assert code == 3, said
    assert "refused" in said
    node.shell(f"echo 'surprise = 1' | cat - {config} >{config}.new && mv {config}.new {config}")
    code, said = send("unknown setting")
    assert code == 8, said
    assert "surprise" in said


def test_socket_unit_passes_its_port_on(node: Node) -> None:
    assert "0.0.0.0:8000" in node.show(SOCKET, "Listen")
