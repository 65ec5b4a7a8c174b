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
from tests.support.secret_paths import check_node, read_table

_TABLE = read_table()
_PLACES = {"servers", "coordinators", "clients", "operators"}
_FILES = [row for row in _TABLE if row.place in _PLACES and row.condition in ("always", "SQLite")]
_USERS = ("sealrelay-server", "sealrelay-coordinator", "nobody")
# Prints which of its arguments it can read, files or folders.
_READ = """for path; do
    if [ -d "$path" ]; then ls "$path"; else head -c 1 "$path"; fi >/dev/null 2>&1 && echo "$path"
done
true"""
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


def test_the_table_of_modes_names_every_secret(node: Node) -> None:
    """Each path of docs/secrets.md is as it says there, and there is no other."""
    check_node(node, _PLACES, {"SQLite"})


@pytest.mark.parametrize(
    ("path", "content", "mode"),
    [
        ("/etc/sealrelay/clients/client1/copy.pem", "-----BEGIN PRIVATE KEY-----\n", "0644"),
        ("/etc/sealrelay/copy", f"# a payload key\n{'A' * 43}=\n", "0644"),
        ("/var/lib/sealrelay/copy", "# nothing\n", "0600"),
    ],
)
def test_the_search_finds_what_the_table_does_not_name(
    node: Node, path: str, content: str, mode: str
) -> None:
    node.write(path, content, mode)
    try:
        with pytest.raises(AssertionError, match=re.escape(path)):
            check_node(node, _PLACES, {"SQLite"})
    finally:
        node.run("rm", path)


@pytest.mark.parametrize("user", _USERS)
def test_a_user_can_read_its_own_and_nobody_elses(node: Node, user: str) -> None:
    """Asked of the kernel, as that very user."""
    groups = "--init-groups" if user.startswith("sealrelay-") else "--clear-groups"
    gid = node.run("id", "-g", user).strip()
    paths = [row.path for row in _FILES]
    become = ["setpriv", "--reuid", user, "--regid", gid, groups]
    read = set(node.run(*become, "sh", "-c", _READ, "sh", *paths).splitlines())
    assert read == {row.path for row in _FILES if row.is_read_by(user)}
    ours = {
        "sealrelay-server": ("/etc/sealrelay/servers", "/var/lib/sealrelay", "/run/sealrelay-s"),
        "sealrelay-coordinator": ("/etc/sealrelay/coordinator", "/run/sealrelay-coordinator"),
        "nobody": (),
    }[user]
    assert all(path.startswith(ours) for path in read)
    assert bool(read) == bool(ours)
    everything = node.run("sh", "-c", _READ, "sh", *paths).split()
    assert everything == paths, "root can, so they are there"


@pytest.mark.parametrize("unit", [*SERVERS, COORDINATOR])
def test_a_process_is_shown_its_own_only(node: Node, unit: str) -> None:
    """By its mounts: whatever user it became, it would find no other."""
    port = unit.partition("@")[2].partition(".")[0]
    own: tuple[str, ...] = (f"/etc/sealrelay/servers/{port}/", "/var/lib/sealrelay/")
    if unit == COORDINATOR:
        own = ("/etc/sealrelay/coordinator/",)
    below = ("/etc/sealrelay/", "/var/lib/sealrelay/")
    paths = [row.path for row in _FILES if not row.is_folder and row.path.startswith(below)]
    for pid in node.pids(unit):
        enter = ["nsenter", "-t", str(pid), "-m"]
        seen = node.run(*enter, "sh", "-c", _READ, "sh", *paths).split()
        assert seen == [path for path in paths if path.startswith(own)]
        assert seen


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


def test_the_control_nodes_secrets_are_as_the_table_says(control: Control) -> None:
    rows = {row.path: row for row in _TABLE if row.place == "control node"}
    owner = control.pki.stat().st_uid
    found = [control.pki, *control.pki.rglob("*")]
    for path in found:
        name, status = str(path.relative_to(control.inventory)), path.stat()
        assert status.st_uid == owner, name
        if name in rows:
            assert f"{status.st_mode & 0o7777:04o}" == rows[name].mode, name
            assert path.is_dir() == rows[name].is_folder, name
        else:
            assert path.is_dir() or status.st_mode & 0o004, f"{name} is not in the table"
            assert path.is_dir() or not _PRIVATE_KEY.search(path.read_bytes()), name
    names = {str(path.relative_to(control.inventory)) for path in found}
    assert {path for path, row in rows.items() if row.condition == "always"} <= names


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
