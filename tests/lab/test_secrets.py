"""Where secrets are, and that they are nowhere else."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.lab.peers import CLIENT1, Peer, read_keys, seal
from tests.support.node import COORDINATOR, REPOSITORY, SERVERS, Control, Node

_MODES = {
    "/etc/sealrelay/servers/5001": "750 root sealrelay-server",
    "/etc/sealrelay/servers/5001/key.pem": "640 root sealrelay-server",
    "/etc/sealrelay/servers/5001/server.toml": "640 root sealrelay-server",
    "/etc/sealrelay/servers/5002": "750 root sealrelay-server",
    "/etc/sealrelay/servers/5002/key.pem": "640 root sealrelay-server",
    "/etc/sealrelay/servers/5002/server.toml": "640 root sealrelay-server",
    "/etc/sealrelay/coordinator": "750 root sealrelay-coordinator",
    "/etc/sealrelay/coordinator/key.pem": "640 root sealrelay-coordinator",
    "/etc/sealrelay/coordinator/coordinator.toml": "640 root sealrelay-coordinator",
    "/etc/sealrelay/operator": "700 root root",
    "/etc/sealrelay/operator/key.pem": "600 root root",
    "/etc/sealrelay/clients/client1": "700 root root",
    "/etc/sealrelay/clients/client1/key.pem": "600 root root",
    "/etc/sealrelay/clients/client1/payload.keys": "600 root root",
    "/etc/sealrelay/clients/client2": "700 root root",
    "/etc/sealrelay/clients/client2/key.pem": "600 root root",
    "/etc/sealrelay/clients/client2/payload.keys": "600 root root",
    "/var/lib/sealrelay": "750 sealrelay-server sealrelay-server",
    "/var/lib/sealrelay/messages.db": "640 sealrelay-server sealrelay-server",
    "/var/lib/sealrelay/keyrings/client1.keys": "640 root sealrelay-server",
    "/var/lib/sealrelay/keyrings/client2.keys": "640 root sealrelay-server",
}
_PRIVATE_KEY = re.compile(rb"-----BEGIN ([A-Z ]*)PRIVATE KEY-----\r?\n[A-Za-z0-9+/=:, -]{40}")


@pytest.fixture(scope="module")
def payload_keys(node: Node) -> list[str]:
    return sorted(
        {
            key
            for client in ("client1", "client2")
            for key in read_keys(node.read(f"/etc/sealrelay/clients/{client}/payload.keys"))
        }
    )


@pytest.mark.parametrize(("path", "expected"), _MODES.items())
def test_owner_and_mode(node: Node, path: str, expected: str) -> None:
    assert node.run("stat", "-c", "%a %U %G", path).strip() == expected


def test_the_table_of_modes_names_every_secret(node: Node) -> None:
    found = node.shell(
        "find /etc/sealrelay /var/lib/sealrelay /opt/sealrelay/good -type f -print0 | "
        "xargs -0 grep -lE 'PRIVATE KEY|^[A-Za-z0-9_-]{43}=$'"
    )
    assert set(found.split()) <= set(_MODES)


def test_clients_share_no_payload_key(node: Node, payload_keys: list[str]) -> None:
    assert len(payload_keys) >= 2
    for client in ("client1", "client2"):
        own = set(read_keys(node.read(f"/etc/sealrelay/clients/{client}/payload.keys")))
        known = set(read_keys(node.read(f"/var/lib/sealrelay/keyrings/{client}.keys")))
        assert own <= known
        assert not known & (set(payload_keys) - own)


def _files_of_the_control_node(control: Control) -> Iterator[Path]:
    """Everything that a playbook of ours could have left here."""
    places = [control.inventory, REPOSITORY, Path.home() / ".ansible"]
    places += Path("/tmp").glob("ansible*")  # noqa: S108 - other programs' left-overs
    for place in places:
        for path in place.rglob("*"):
            environment = path.is_relative_to(REPOSITORY) and any(
                part.startswith(".venv") for part in path.relative_to(REPOSITORY).parts
            )
            if not environment and path.is_file() and not path.is_symlink():
                yield path


def test_the_control_node_has_no_private_key_but_the_cas(
    control: Control, secrets: list[str]
) -> None:
    ours = [secret.encode() for secret in secrets if secret != control.passphrase]
    seen = set()
    for path in _files_of_the_control_node(control):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue  # others work here too
        kinds = {match.decode().strip() for match in _PRIVATE_KEY.findall(content)}
        if path.parent.name == "pki" and path.name == "ca.key":
            assert kinds == {"ENCRYPTED"}, f"{path} is not encrypted"
            seen.add(path)
        else:
            assert not kinds, f"{path} holds a private key"
        assert not any(secret in content for secret in ours), f"{path} holds a key of the node"
    assert control.pki / "ca.key" in seen, "the search came by the CA's key"


def test_the_cas_key_opens_with_the_passphrase_only(control: Control) -> None:
    pem = (control.pki / "ca.key").read_bytes()
    load_pem_private_key(pem, control.passphrase.encode())
    with pytest.raises(ValueError, match=r"(?i)password|decrypt|incorrect"):
        load_pem_private_key(pem, b"a wrong passphrase")
    for name, mode in (("", 0o700), ("ca.key", 0o600), ("passphrase", 0o600)):
        assert (control.pki / name).stat().st_mode & 0o777 == mode


def _search(node: Node, pids: list[int], needles: list[bytes]) -> dict[int, set[int]]:
    """For each process, which needles are in its memory."""
    encoded = [base64.b64encode(needle).decode() for needle in needles]
    answer = node.program("search_memory", {"pids": pids, "needles": encoded}, timeout=300)
    for found in answer.values():
        assert found["bytes"] > 10_000_000, "its memory was read"
    return {int(pid): set(found["found"]) for pid, found in answer.items()}


def test_the_coordinators_processes_know_no_payload_key_and_no_plaintext(
    node: Node, payload_keys: list[str]
) -> None:
    text = f"marker-{uuid.uuid4()}"
    token = seal(node, text)
    # Within the same memory the key is 32 bytes, of which Fernet uses the halves apart.
    raw = [base64.urlsafe_b64decode(key) for key in payload_keys]
    hidden = [text.encode(), *(key.encode() for key in payload_keys), *raw]
    hidden += [half for key in raw for half in (key[:16], key[16:])]
    needles = [*hidden, token[-64:].encode()]
    for _ in range(3):
        assert Peer(node, CLIENT1).post(token).status == 200
    answer = _search(node, node.pids(COORDINATOR), needles)
    assert set().union(*answer.values()) <= {len(needles) - 1}, "at most the token itself"

    servers = _search(node, [pid for unit in SERVERS for pid in node.pids(unit)], needles)
    known = set().union(*servers.values())
    assert known & set(range(1, len(hidden))), "the same search finds the keys in the servers"


def test_no_payload_key_and_no_plaintext_is_on_the_coordinators_path(
    node: Node, payload_keys: list[str]
) -> None:
    text = f"marker-{uuid.uuid4()}"
    since = node.now()
    assert Peer(node, CLIENT1).post(seal(node, text)).status == 200
    for pid in node.pids(COORDINATOR):
        for name in ("environ", "cmdline"):
            content = node.read(f"/proc/{pid}/{name}")
            assert not [key for key in payload_keys if key in content]
    for path in ("/etc/sealrelay/coordinator", "/opt/sealrelay/good"):
        patterns = "\n".join([text, *payload_keys])
        found = node.try_run("grep", "-rlaF", "-f", "-", path, stdin=patterns)
        assert (found.returncode, found.stdout) == (1, ""), found
    whole = node.journal(COORDINATOR)
    assert not [key for key in payload_keys if key in whole]
    assert text not in whole
    everyone = node.journal(since=since)
    assert not [key for key in payload_keys if key in everyone]
    assert f"Decrypted data: {text}" in everyone, "the lab's servers show it, nobody else"
    assert everyone.count(text) == 1


def test_what_is_stored_is_sealed(node: Node) -> None:
    text = f"marker-{uuid.uuid4()}"
    token = seal(node, text)
    assert Peer(node, CLIENT1).post(token).status == 200

    def files_with(pattern: str) -> list[str]:
        command = ["grep", "-rlaF", "-f", "-", "/var/lib/sealrelay"]
        return node.try_run(*command, stdin=pattern).stdout.split()

    assert files_with(text) == []
    assert files_with(token), "the same search finds the token"
