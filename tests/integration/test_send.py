"""``sealrelay send`` as a user runs it: what it prints, and how it fails."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pytest

from sealrelay.seal import generate_keyring
from tests.support.command import Result, run_main
from tests.support.deployment import Deployment, free_port, run_sealrelay
from tests.support.pki import CLIENT_ONLY, Authority, Leaf, spiffe_id

_HOUR = datetime.timedelta(hours=1)
URI = spiffe_id("client", "client1")
PLAINTEXT = "the-plaintext-of-the-message"


@pytest.fixture
def config(deployment: Deployment) -> str:
    return str(deployment.client_config("client1"))


@pytest.fixture
def own_client(deployment: Deployment, tmp_path: Path) -> Path:
    """A copy of client1's folder, to be spoiled."""
    folder = tmp_path / "client1"
    folder.mkdir()
    for file in deployment.client_config("client1").parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    deployment.write_client(folder, "client1", deadline=5.0)
    assert run_main("send", "--config", str(folder / "client.toml"), "still good").code == 0
    return folder


def assert_fails(folder: Path, code: int, *facts: str, text: str = PLAINTEXT) -> None:
    """One line on standard error with these facts, this exit code, and no secret."""
    result = run_main("send", "--config", str(folder / "client.toml"), text)
    assert (result.code, result.out) == (code, ""), result
    (line,) = result.err.splitlines()
    for fact in facts:
        assert fact in line
    assert_no_secret(result, folder)


def assert_no_secret(result: Result, folder: Path) -> None:
    key = (folder / "payload.keys").read_text().split()[-1:]
    for secret in (PLAINTEXT, "gAAAA", "Traceback", "PRIVATE", *(part[:12] for part in key)):
        assert secret not in result.err + result.out


def test_send_prints_what_was_accepted(config: str) -> None:
    result = run_sealrelay("send", "--config", config, "hello")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "[client1] Success: {'result': 'ok'}\n"


def test_verbose_send_tells_ids_and_servers(config: str, deployment: Deployment) -> None:
    result = run_main("send", "--config", config, "-v", "hello")
    form = r"\[client1\] Success: {'result': 'ok'} ([0-9a-f]{64}) by (server1|server2)\n"
    match = re.fullmatch(form, result.out)
    assert match
    assert match[1] in deployment.stored_ids()


def test_json_is_one_object_a_line(config: str) -> None:
    result = run_main("send", "--config", config, "--json", "one", "two")
    objects = [json.loads(line) for line in result.out.splitlines()]
    assert len(objects) == 2
    for entry in objects:
        assert set(entry) == {
            *("client", "result", "message_id", "served_by", "replayed", "tries", "seconds")
        }
        assert (entry["client"], entry["result"]) == ("client1", "ok")
        assert (entry["replayed"], entry["tries"]) == (False, 1)
        assert re.fullmatch("[0-9a-f]{64}", entry["message_id"])


def _texts(deployment: Deployment, result: Result) -> list[str]:
    server = str(deployment.servers[0].config)
    ids = [json.loads(line)["message_id"] for line in result.out.splitlines()]
    assert len(set(ids)) == len(ids)
    shown = [run_main("messages", "show", "--json", "--config", server, name) for name in ids]
    return [json.loads(show.out)["text"] for show in shown]


def test_texts_files_standard_input_and_count_are_sent(
    deployment: Deployment, config: str, tmp_path: Path
) -> None:
    send = ("send", "--json", "--config", config)
    file = tmp_path / "file"
    file.write_text("two\nlines\n")
    assert _texts(deployment, run_main(*send, "one", "two")) == ["one", "two"]
    assert _texts(deployment, run_main(*send, "--count", "3", "same")) == ["same"] * 3
    assert _texts(deployment, run_main(*send, "--file", str(file))) == ["two\nlines\n"]
    both = run_main(*send, "before", "-", "after", stdin="first\n\nGrüße\r\nlast".encode())
    assert _texts(deployment, both) == ["before", "first", "", "Grüße", "last", "after"]


def test_standard_input_is_read_as_a_user_pipes_it(config: str) -> None:
    result = run_sealrelay("send", "--config", config, "-", input="a\nb\n")
    assert result.stdout == "[client1] Success: {'result': 'ok'}\n" * 2


def test_nobody_there_is_exit_code_3(own_client: Path, deployment: Deployment) -> None:
    dead = f"https://127.0.0.1:{free_port()}"
    deployment.write_client(own_client, "client1", dead, deadline=1.0)
    assert_fails(own_client, 3, "[client1] not acknowledged within 1 s", dead, "refused")


def test_certificate_that_the_coordinator_refuses_is_exit_code_4(
    own_client: Path, deployment: Deployment
) -> None:
    leaf = Leaf([URI], hosts=(), usages=CLIENT_ONLY, starts=-2 * _HOUR, ends=-_HOUR / 60)
    deployment.authority.issue(own_client, leaf)
    assert_fails(own_client, 4, "the coordinator refuses this client's certificate", "expired")
    Authority().issue(own_client, Leaf([URI], hosts=(), usages=CLIENT_ONLY))
    (own_client / "ca.pem").write_bytes(deployment.authority.pem)
    assert_fails(own_client, 4, "the coordinator refuses this client's certificate", "unknown ca")


def test_coordinator_that_the_client_refuses_is_exit_code_4(own_client: Path) -> None:
    (own_client / "ca.pem").write_bytes(Authority().pem)
    assert_fails(own_client, 4, "the coordinator's certificate is refused", "verify failed")


def test_server_in_the_coordinators_place_is_exit_code_4(
    own_client: Path, deployment: Deployment
) -> None:
    deployment.write_client(own_client, "client1", deployment.servers[0].url, deadline=5.0)
    assert_fails(own_client, 4, "not a coordinator of ours", "/server/server1")


def test_refusal_is_told_as_such_every_time(own_client: Path, deployment: Deployment) -> None:
    """The alert must reach the client: a reset that overtakes it would look like an outage."""
    leaf = Leaf([URI], hosts=(), usages=CLIENT_ONLY, starts=-2 * _HOUR, ends=-_HOUR / 60)
    deployment.authority.issue(own_client, leaf)
    for _ in range(30):
        assert_fails(own_client, 4, "expired")


def test_other_payload_key_is_exit_code_5(own_client: Path) -> None:
    (own_client / "payload.keys").write_text(generate_keyring())
    assert_fails(own_client, 5, "The token is refused.", "payload keys", "clock")


def test_too_large_a_message_is_exit_code_6(own_client: Path) -> None:
    file = own_client / "large"
    file.write_bytes(b"x" * 2 * 1024 * 1024)
    result = run_main("send", "--config", str(own_client / "client.toml"), "--file", str(file))
    assert (result.code, result.out) == (6, "")
    (line,) = result.err.splitlines()
    assert "the limit is 1048576 bytes" in line
    assert_no_secret(result, own_client)


def test_unreadable_input_file_is_exit_code_7(config: str, tmp_path: Path) -> None:
    for path, fact in ((tmp_path / "missing", "No such file"), (tmp_path, "Is a directory")):
        result = run_main("send", "--config", config, "--file", str(path))
        assert (result.code, result.out) == (7, "")
        (line,) = result.err.splitlines()
        assert line.startswith("sealrelay: ")
        assert f"{path}: {fact}" in line


def test_wrong_settings_are_exit_code_8(own_client: Path) -> None:
    (own_client / "payload.keys").write_text("# none\n")
    assert_fails(own_client, 8, str(own_client / "payload.keys"), "it holds no key")


def test_failure_tells_how_many_were_accepted_before(own_client: Path) -> None:
    config = str(own_client / "client.toml")
    result = run_main("send", "--config", config, "small", "x" * 1_100_000, "never sent")
    assert result.code == 6
    assert result.out == "[client1] Success: {'result': 'ok'}\n"
    assert result.err.endswith("(1 accepted before)\n")


def test_verbose_send_tells_each_failed_try(own_client: Path, deployment: Deployment) -> None:
    dead = f"https://127.0.0.1:{free_port()}"
    deployment.write_client(own_client, "client1", dead, deployment.url)
    config = str(own_client / "client.toml")
    assert run_main("send", "--config", config, "quiet").err == ""
    result = run_main("send", "--config", config, "-v", "hello")
    assert result.code == 0
    assert result.err == f"sealrelay: try 1: {dead}: Connection refused\n"
