"""Messages through a running deployment: taken once, or refused with the reason."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from cryptography.fernet import Fernet

from sealrelay.seal import Token, generate_keyring, parse_keyring
from tests.support.command import run_main
from tests.support.deployment import PATIENCE, Deployment
from tests.support.http import Answer, ask, exchange_raw, open_connection, post_json

MIB = 1024 * 1024


@pytest.fixture
def session(deployment: Deployment) -> Iterator[requests.Session]:
    with deployment.client_session() as opened:
        yield opened


def seal(deployment: Deployment, text: bytes = b"hello", client: str = "client1") -> Token:
    with deployment.client(client) as sealing:
        return sealing.seal(text)


def key_of(deployment: Deployment, client: str = "client1") -> str:
    return deployment.client_config(client).with_name("payload.keys").read_text().split()[-1]


def post(deployment: Deployment, session: requests.Session, data: object) -> requests.Response:
    return session.post(f"{deployment.url}/api/data", json={"data": data}, timeout=PATIENCE)


def assert_problem(answer: Answer | requests.Response, status: int, name: str) -> None:
    """A problem document (RFC 9457) of this kind, and nothing in it that is not for the caller."""
    if isinstance(answer, requests.Response):
        answer = Answer(answer.status_code, dict(answer.headers), answer.content)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    document = answer.json()
    assert set(document) == {"type", "title", "status", "detail"}
    assert (document["type"], document["status"]) == (f"urn:sealrelay:problem:{name}", status)
    for secret in (b"Traceback", b"gAAAA", b"/site-packages", b"hello"):
        assert secret not in answer.body


def test_messages_are_stored_by_both_servers(deployment: Deployment) -> None:
    with deployment.client("client1") as one, deployment.client("client2") as two:
        receipts = [client.send("hello") for _ in range(5) for client in (one, two)]
    assert {receipt.served_by for receipt in receipts} == {"server1", "server2"}
    assert all((receipt.tries, receipt.replayed) == (1, False) for receipt in receipts)
    assert {receipt.message_id for receipt in receipts} <= set(deployment.stored_ids())


def test_stored_message_is_the_sealed_token_with_who_and_when(deployment: Deployment) -> None:
    with deployment.client("client2") as client:
        token = client.seal("kept as it was sealed")
        receipt = client.send_token(token)
    with deployment.store() as store:
        record = store.get(token.message_id)
    assert record is not None
    assert receipt.message_id == token.message_id.hex()
    assert (record.client, record.token, record.server) == (
        "client2",
        token.text,
        receipt.served_by,
    )
    assert record.sealed_at == token.sealed_at
    assert abs(record.received_at / 1000 - time.time()) < PATIENCE
    database = b"".join(file.read_bytes() for file in deployment.folder.glob("messages.db*"))
    assert token.text.encode() in database
    assert b"kept as it was sealed" not in database


def test_server_logs_the_text_and_the_id_where_it_is_told_to(deployment: Deployment) -> None:
    with deployment.client() as client:
        receipt = client.send("Grüße\nServer x is healthy again")
    server = next(s for s in deployment.servers if s.name == receipt.served_by)
    server.await_line("Decrypted data: Grüße\\nServer x is healthy again\n")
    server.await_line(f"Stored message {receipt.message_id} from client1\n")
    stored_by = f"Message {receipt.message_id} from client1 stored by {receipt.served_by} in "
    deployment.coordinator.await_line(stored_by)
    assert " 200 " not in deployment.coordinator.log + server.log, "a message has its own line"


@pytest.mark.parametrize("text", [b"", b"\0\xff", b"x" * 700_000], ids=["empty", "binary", "large"])
def test_any_bytes_are_carried(deployment: Deployment, text: bytes) -> None:
    token = seal(deployment, text)
    with deployment.client() as client:
        client.send_token(token)
    with deployment.store() as store:
        record = store.get(token.message_id)
    assert record is not None
    assert Fernet(key_of(deployment)).decrypt(record.token) == text


def test_plain_http_client_gets_the_documented_answer(
    deployment: Deployment, session: requests.Session
) -> None:
    token = seal(deployment)
    answer = post(deployment, session, token.text)
    assert (answer.status_code, answer.json()) == (200, {"result": "ok"})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Message-Id"] == token.message_id.hex()
    assert answer.headers["Served-By"] in {"server1", "server2"}
    assert "Idempotent-Replayed" not in answer.headers


def test_same_token_again_is_acknowledged_and_stored_once(
    deployment: Deployment, session: requests.Session
) -> None:
    token = seal(deployment)
    answers = [post(deployment, session, token.text) for _ in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert {answer.headers["Message-Id"] for answer in answers} == {token.message_id.hex()}
    replayed = [answer.headers.get("Idempotent-Replayed") for answer in answers]
    assert replayed == [None] + ["true"] * 7
    # whichever server answers says which one stored it
    assert len({answer.headers["Served-By"] for answer in answers}) == 1
    for server in deployment.servers:
        server.await_line(f"Replayed message {token.message_id.hex()}")
    assert deployment.stored_ids().count(token.message_id.hex()) == 1


def test_same_token_twenty_times_at_once_is_stored_once(deployment: Deployment) -> None:
    token = seal(deployment)

    def send(_: int) -> bool:
        with deployment.client() as client:
            return client.send_token(token).replayed

    with ThreadPoolExecutor(20) as pool:
        replayed = list(pool.map(send, range(20)))
    assert sorted(replayed) == [False] + [True] * 19
    assert deployment.stored_ids().count(token.message_id.hex()) == 1


def test_many_messages_at_once_are_each_stored_once(deployment: Deployment) -> None:
    def send(number: int) -> list[str]:
        with deployment.client(f"client{number % 2 + 1}") as client:
            return [client.send(f"{number} {part}").message_id for part in range(10)]

    with ThreadPoolExecutor(16) as pool:
        acknowledged = [message for sent in pool.map(send, range(16)) for message in sent]
    stored = deployment.stored_ids()
    assert len(set(acknowledged)) == 160
    assert set(acknowledged) <= set(stored)
    assert len(set(stored)) == len(stored)


def test_flipped_byte_is_refused(deployment: Deployment, session: requests.Session) -> None:
    raw = bytearray(base64.urlsafe_b64decode(seal(deployment).text))
    for place in (5, 12, 30, len(raw) - 1):
        changed = bytearray(raw)
        changed[place] ^= 1
        answer = post(deployment, session, base64.urlsafe_b64encode(changed).decode())
        assert_problem(answer, 422, "token-refused")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.rstrip("="),
        lambda text: text + "=",
        lambda text: text + "\n",
        lambda text: text[:40] + "\n" + text[40:],
        lambda text: text[:40] + "." + text[40:],
        lambda text: "hello",
        lambda text: "",
        lambda text: text[:-4],
    ],
    ids=["unpadded", "padded", "newline", "wrapped", "stray", "plaintext", "empty", "cut"],
)
def test_what_is_no_canonical_token_is_malformed(
    deployment: Deployment, session: requests.Session, change: object
) -> None:
    assert callable(change)
    text = next(t.text for t in (seal(deployment, b"x" * n) for n in (0, 16)) if "=" in t.text)
    before = deployment.stored()
    assert_problem(post(deployment, session, change(text)), 400, "malformed")
    assert deployment.stored() == before
    assert post(deployment, session, text).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"hello",
        b"",
        b"{",
        b"[]",
        b'"gAAAA"',
        b'{"data": 1}',
        b'{"data": null}',
        b"{}",
        b"\xff\xfe",
        b'{"data": "\xff"}',
        b'{"data": "x"} trailing',
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_body_that_is_not_the_documented_json_is_malformed(
    deployment: Deployment, body: bytes
) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    leaf = deployment.client_config("client1").parent
    answer = ask(deployment.coordinator, leaf, "POST", "/api/data", body, headers)
    assert_problem(answer, 400, "malformed")


def test_unknown_key_in_the_body_is_refused(
    deployment: Deployment, session: requests.Session
) -> None:
    url, token = f"{deployment.url}/api/data", seal(deployment)
    answer = session.post(url, json={"data": token.text, "client": "client2"}, timeout=PATIENCE)
    assert_problem(answer, 400, "malformed")
    assert post(deployment, session, token.text).status_code == 200


def test_too_large_a_body_is_refused_and_the_sender_sees_it(
    deployment: Deployment, session: requests.Session
) -> None:
    for _ in range(20):
        assert_problem(post(deployment, session, "A" * 2 * MIB), 413, "too-large")
    with deployment.client_session() as fresh:  # as curl does it: a connection for each
        for _ in range(20):
            fresh.close()
            assert_problem(post(deployment, fresh, "A" * 2 * MIB), 413, "too-large")


def test_refused_role_sees_the_refusal_of_a_large_body_too(deployment: Deployment) -> None:
    leaf = deployment.issue("operator", "op1")
    for _ in range(20):
        answer = post_json(deployment.coordinator, leaf, "/api/data", {"data": "A" * 2 * MIB})
        assert_problem(answer, 403, "role-not-allowed")


def test_largest_body_that_fits_is_taken(deployment: Deployment) -> None:
    """What the coordinator takes, servers take too: its batch is larger than the body it got."""
    size = MIB // 4 * 3 - 200
    token = seal(deployment, b"x" * size)
    assert MIB - 400 < len(json.dumps({"data": token.text})) <= MIB
    with deployment.client() as client:
        assert client.send_token(token).tries == 1


def test_body_without_length_is_refused(deployment: Deployment) -> None:
    leaf = deployment.client_config("client1").parent
    kind = ("Content-Type", "application/json")
    body = json.dumps({"data": seal(deployment).text}).encode()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    coordinator = deployment.coordinator
    answer = ask(coordinator, leaf, "POST", "/api/data", None, [kind])
    assert_problem(answer, 411, "length-required")
    answer = ask(
        coordinator, leaf, "POST", "/api/data", chunked, [kind, ("Transfer-Encoding", "chunked")]
    )
    assert_problem(answer, 411, "length-required")
    answer = ask(
        coordinator, leaf, "POST", "/api/data", body, [kind, ("Content-Length", str(len(body)))]
    )
    assert answer.status == 200


def test_length_and_chunks_together_are_refused(deployment: Deployment) -> None:
    """Two ways to say where a request ends are how one request is smuggled within another."""
    leaf = deployment.client_config("client1").parent
    answer = exchange_raw(
        deployment.coordinator,
        leaf,
        b"POST /api/data HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"Traceback" not in answer


def test_body_cut_short_stores_nothing(deployment: Deployment) -> None:
    token = seal(deployment)
    body = json.dumps({"data": token.text}).encode()
    head = (
        b"POST /api/data HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n"
    )
    leaf = deployment.client_config("client1").parent
    assert exchange_raw(deployment.coordinator, leaf, head % len(body) + body).startswith(
        b"HTTP/1.1 200"
    )
    other = seal(deployment)
    body = json.dumps({"data": other.text}).encode()
    with open_connection(deployment.coordinator, leaf) as connection:
        connection.sendall(head % (len(body) + 1) + body)
    with deployment.client() as client:
        client.send("after it")
    assert other.message_id.hex() not in deployment.stored_ids()


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_other_content_types_are_refused(
    deployment: Deployment, session: requests.Session, kind: str
) -> None:
    body = json.dumps({"data": seal(deployment).text})
    url = f"{deployment.url}/api/data"
    answer = session.post(url, body, headers={"Content-Type": kind}, timeout=PATIENCE)
    assert_problem(answer, 415, "unsupported-type")
    kind = "application/json; charset=utf-8"
    answer = session.post(url, body, headers={"Content-Type": kind}, timeout=PATIENCE)
    assert answer.status_code == 200


def test_client_with_another_key_is_refused(
    deployment: Deployment, session: requests.Session
) -> None:
    made_up = parse_keyring(generate_keyring().splitlines())
    token = made_up.seal(b"hello")
    assert_problem(post(deployment, session, token.text), 422, "token-refused")
    assert token.message_id.hex() not in deployment.stored_ids()
    logs = "".join(service.log for service in deployment.services)
    assert token.text[:40] not in logs
    assert key_of(deployment) not in logs


def test_token_of_one_client_is_refused_from_another(deployment: Deployment) -> None:
    """The keyring is chosen by the certificate, never by what is said."""
    token = seal(deployment, client="client1")
    with deployment.client_session("client2") as other:
        assert_problem(post(deployment, other, token.text), 422, "token-refused")
    assert token.message_id.hex() not in deployment.stored_ids()
    with deployment.client_session("client1") as own:
        assert post(deployment, own, token.text).status_code == 200


def test_client_without_keyring_on_the_servers_is_refused_alike(deployment: Deployment) -> None:
    """The answer does not tell whether a client is known to the servers."""
    leaf = deployment.issue("client", "stranger")
    token = seal(deployment)
    stranger = post_json(deployment.coordinator, leaf, "/api/data", {"data": token.text})
    assert_problem(stranger, 422, "token-refused")
    leaf = deployment.client_config("client2").parent
    known = post_json(deployment.coordinator, leaf, "/api/data", {"data": token.text})
    assert known.body == stranger.body


@pytest.mark.parametrize(
    ("age", "status"),
    [(24 * 3600 - 120, 200), (24 * 3600 + 120, 422), (-30, 200), (-600, 422)],
    ids=["old", "expired", "ahead", "future"],
)
def test_token_is_taken_within_its_window_only(
    deployment: Deployment, session: requests.Session, age: int, status: int
) -> None:
    fernet = Fernet(key_of(deployment))
    token = fernet.encrypt_at_time(b"hello", int(time.time()) - age).decode()
    answer = post(deployment, session, token)
    if status == 200:
        assert answer.status_code == 200
    else:
        assert_problem(answer, status, "token-refused")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/data"),
        ("PUT", "/api/data"),
        ("OPTIONS", "/api/data"),
        ("POST", "/api/data/"),
        ("POST", "/api/batch"),
        ("POST", "/healthz"),
        ("HEAD", "/healthz"),
        ("POST", "/status"),
        ("GET", "/status/"),
        ("GET", "/static/x"),
        ("GET", "/api/%2e%2e/healthz"),
    ],
)
def test_there_is_nothing_but_the_documented_endpoints(
    deployment: Deployment, method: str, path: str
) -> None:
    leaf = deployment.client_config("client1").parent
    answer = ask(deployment.coordinator, leaf, method, path, None, [("Content-Length", "0")])
    assert answer.status == 404
    if method != "HEAD":
        assert_problem(answer, 404, "no-such-endpoint")


def test_request_that_is_no_http_is_refused_without_a_trace(deployment: Deployment) -> None:
    leaf = deployment.client_config("client1").parent
    for request in (b"nonsense\r\n\r\n", b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n"):
        answer = exchange_raw(deployment.coordinator, leaf, request)
        assert answer.startswith(b"HTTP/1.1 4")
        assert b"Traceback" not in answer
    assert "Traceback" not in deployment.coordinator.log


def test_stored_messages_can_be_listed_shown_and_counted(deployment: Deployment) -> None:
    with deployment.client("client1") as one, deployment.client("client2") as two:
        first, second = one.send("first\nmessage"), two.send("second")
    config = ["--config", str(deployment.servers[0].config)]
    count = int(run_main("messages", "count", *config).out)
    assert count == deployment.stored()
    of_two = int(run_main("messages", "count", "--client", "client2", *config).out)
    assert 0 < of_two < count
    listed = run_main("messages", "list", "--limit", "2", *config)
    lines = [line.split("  ") for line in listed.out.splitlines()]
    assert [line[0] for line in lines] == [first.message_id, second.message_id]
    assert [line[2:] for line in lines] == [
        ["client1", first.served_by, "first\\nmessage"],
        ["client2", second.served_by, "second"],
    ]
    shown = run_main("messages", "show", first.message_id, "--json", *config)
    record = json.loads(shown.out)
    assert (record["message_id"], record["text"]) == (first.message_id, "first\nmessage")
    assert (record["client"], record["server"]) == ("client1", first.served_by)
    missing = run_main("messages", "show", "00" * 32, *config)
    assert (missing.code, missing.out) == (7, "")
    assert missing.err == f"sealrelay: no message {'00' * 32} is stored here\n"


def test_message_whose_key_is_gone_is_listed_without_text(
    deployment: Deployment, tmp_path: Path
) -> None:
    with deployment.client() as client:
        receipt = client.send("unreadable")
    config = tmp_path / "server.toml"
    empty = tmp_path / "keyrings"
    empty.mkdir()
    text = deployment.servers[0].config.read_text()
    config.write_text(text.replace(str(deployment.keyrings), str(empty)))
    shown = run_main("messages", "show", receipt.message_id, "--config", str(config))
    assert shown.out.endswith("  (no key of ours opens it)\n")
    (empty / "client1.keys").write_bytes((deployment.keyrings / "client1.keys").read_bytes())
    shown = run_main("messages", "show", receipt.message_id, "--config", str(config))
    assert shown.out.endswith("  unreadable\n")


def test_health_is_told_to_the_service_itself(deployment: Deployment) -> None:
    for service in deployment.services:
        leaf = service.config.parent
        health = ask(service, leaf, "GET", "/healthz").json()
        assert (health["status"], health["name"]) == ("ok", service.name)
        assert service.probe().out.startswith(f"{service.name} answers: version ")


def test_healthy_probes_do_not_fill_the_log(deployment: Deployment) -> None:
    leaf = deployment.coordinator.config.parent
    assert ask(deployment.coordinator, leaf, "GET", "/healthz").status == 200
    assert ask(deployment.coordinator, leaf, "GET", "/unknown").status == 404
    deployment.coordinator.await_line('"GET /unknown" 404')
    assert '"GET /healthz" 200' not in deployment.coordinator.log
