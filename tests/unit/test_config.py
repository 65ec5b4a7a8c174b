"""Settings files: what is right is read, and each mistake is told in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from sealrelay.config import (
    ClientSettings,
    CoordinatorSettings,
    ServerSettings,
    load_any_settings,
    load_keyrings,
    load_settings,
    split_bind,
    split_url,
)
from sealrelay.errors import ConfigError
from sealrelay.seal import generate_keyring
from tests.support.command import run_main
from tests.support.pki import CLIENT_ONLY, Authority, Leaf, spiffe_id

TLS = """
[tls]
cert = "cert.pem"
key = "key.pem"
ca = "ca.pem"
"""
SERVER = """\
service = "server"
name = "node1-5001"
trust_domain = "sealrelay.internal"
bind = "127.0.0.1:5001"
store = "sqlite:////nonexistent/messages.db"
keyrings = "keyrings"
"""
COORDINATOR = """\
service = "coordinator"
name = "node1"
trust_domain = "sealrelay.internal"
bind = "0.0.0.0:8000"
"""
ADDRESSES = """
[[servers]]
name = "node1-5001"
url = "https://127.0.0.1:5001"
[[servers]]
name = "node1-5002"
url = "https://127.0.0.1:5002"
"""
CLIENT = """\
service = "client"
name = "client1"
trust_domain = "sealrelay.internal"
coordinators = ["https://127.0.0.1:8000"]
payload_keys = "payload.keys"
"""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Path:
    folder = authority.issue(tmp_path / "server", Leaf([spiffe_id("server", "node1-5001")]))
    (folder / "keyrings").mkdir()
    (folder / "keyrings" / "client1.keys").write_text(generate_keyring())
    (folder / "server.toml").write_text(SERVER + TLS)
    return folder / "server.toml"


@pytest.fixture
def coordinator(tmp_path: Path, authority: Authority) -> Path:
    folder = authority.issue(tmp_path / "coordinator", Leaf([spiffe_id("coordinator", "node1")]))
    (folder / "coordinator.toml").write_text(COORDINATOR + TLS + ADDRESSES)
    return folder / "coordinator.toml"


@pytest.fixture
def client(tmp_path: Path, authority: Authority) -> Path:
    leaf = Leaf([spiffe_id("client", "client1")], hosts=(), usages=CLIENT_ONLY)
    folder = authority.issue(tmp_path / "client", leaf)
    (folder / "payload.keys").write_text(generate_keyring())
    (folder / "client.toml").write_text(CLIENT + TLS)
    return folder / "client.toml"


def _refusal(path: Path) -> str:
    """What ``sealrelay check-config`` says; always exit 8 and one line on standard error."""
    result = run_main("check-config", str(path))
    assert result.code == 8, result
    assert result.out == ""
    (line,) = result.err.splitlines()
    with pytest.raises(ConfigError) as refused:
        load_any_settings(path)
    assert line == f"sealrelay: {refused.value}"
    return line


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_good_settings_are_read_with_their_defaults(
    server: Path, coordinator: Path, client: Path
) -> None:
    s = load_settings(server, ServerSettings)
    assert (s.workers, s.token_ttl, s.retention) == (1, 86_400, 604_800)
    assert (s.max_body_bytes, s.log_payloads, s.log_level) == (1_048_576, False, "info")
    c = load_settings(coordinator, CoordinatorSettings)
    assert [address.name for address in c.servers] == ["node1-5001", "node1-5002"]
    assert (c.deadline, c.attempt_timeout, c.probe_interval) == (10.0, 2.0, 0.5)
    assert (c.lanes, c.max_batch, c.max_waiting, c.max_body_bytes) == (4, 64, 10_000, 1_048_576)
    assert (c.hedge_floor, c.hedge_ceiling, c.retry_share) == (0.05, 0.15, 0.1)
    assert c.max_waiting_bytes == 64 * 1024 * 1024
    assert load_settings(client, ClientSettings).deadline == 30.0


@pytest.mark.parametrize("kind", ["server", "coordinator", "client"])
def test_check_config_says_what_the_file_is(request: pytest.FixtureRequest, kind: str) -> None:
    path: Path = request.getfixturevalue(kind)
    result = run_main("check-config", str(path))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{path}: good settings of {kind} ")


def test_relative_paths_are_relative_to_the_settings_file(
    client: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(client.parent.parent)
    settings = load_settings(Path("client/client.toml"), ClientSettings)
    assert settings.payload_keys == str(client.parent / "payload.keys")
    assert settings.tls.key == str(client.parent / "key.pem")
    assert load_settings(server, ServerSettings).keyrings == str(server.parent / "keyrings")


def test_absolute_paths_stay_as_they_are(client: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "keys"
    elsewhere.write_text(generate_keyring())
    _edit(client, '"payload.keys"', f'"{elsewhere}"')
    assert load_settings(client, ClientSettings).payload_keys == str(elsewhere)


@pytest.mark.parametrize(
    ("kind", "old", "new", "key", "fact"),
    [
        ("server", "[tls]", "worker = 2\n[tls]", "worker", "no such key"),
        ("server", "[tls]", "[tls]\nchain = 'x'", "tls.chain", "no such key"),
        ("server", "[tls]", "[tlss]\nx = 1\n[tls]", "tlss", "no such key"),
        ("coordinator", '5001"\n[[', '5001"\nport = 1\n[[', "servers[0].port", "no such key"),
        ("server", 'name = "node1-5001"\n', "", "name", "missing"),
        ("server", 'store = "sqlite:////nonexistent/messages.db"\n', "", "store", "missing"),
        ("server", 'ca = "ca.pem"\n', "", "tls.ca", "missing"),
        ("server", 'service = "server"\n', "", "service", "missing"),
        ("server", "[tls]", "workers = '2'\n[tls]", "workers", "expected `int`"),
        ("server", "[tls]", "workers = 0\n[tls]", "workers", ">= 1"),
        ("server", "[tls]", "workers = 1.5\n[tls]", "workers", "expected `int`"),
        ("server", "[tls]", "log_payloads = 'no'\n[tls]", "log_payloads", "expected `bool`"),
        ("server", "[tls]", "log_payloads = 0\n[tls]", "log_payloads", "expected `bool`"),
        ("server", "[tls]", "log_level = 'loud'\n[tls]", "log_level", "invalid enum"),
        ("server", "[tls]", "max_body_bytes = 10\n[tls]", "max_body_bytes", ">= 1024"),
        ("server", '"127.0.0.1:5001"', '"127.0.0.1"', "bind", "host:port"),
        ("server", '"127.0.0.1:5001"', '":5001"', "bind", "host:port"),
        ("server", '"127.0.0.1:5001"', '"127.0.0.1:70000"', "bind", "'127.0.0.1:70000'"),
        ("server", '"127.0.0.1:5001"', "5001", "bind", "expected `str`"),
        ("server", '"node1-5001"', '"node1/5001"', "name", "regex"),
        ("server", '"node1-5001"', '"../node1"', "name", "regex"),
        ("server", '"node1-5001"', '""', "name", "regex"),
        ("server", '"node1-5001"', '"node1-5001\\n"', "name", "regex"),
        ("server", '"sealrelay.internal"', '"Sealrelay.Internal"', "trust_domain", "regex"),
        ("server", '"sealrelay.internal"', '"sealrelay.internal\\n"', "trust_domain", "regex"),
        ("server", "sqlite:////nonexistent/", "sqlite:///", "store", "regex"),
        ("server", "sqlite:////", "mysql://host/", "store", "regex"),
        ("server", "sqlite:////", "postgresql://a host/", "store", "regex"),
        ("server", "sqlite:////", "postgresql://[::1/", "store", "cannot be read"),
        ("server", "sqlite:////", "postgresql://me:S3/", "store", "cannot be read"),
        ("server", "sqlite:////", "postgresql://me@a:1,b:S3/", "store", "cannot be read"),
        ("server", "messages.db", "messages.db?mode=memory", "store", "regex"),
        ("server", '"server"', '"relay"', "service", "one of server, coordinator, client"),
        ("server", '"server"', "1", "service", "one of server, coordinator, client"),
        ("server", "[tls]", "retention = 86400\n[tls]", "retention", "not longer than token_ttl"),
        ("server", "[tls]", "token_ttl = 604800\n[tls]", "retention", "not longer than token_ttl"),
        ("server", "[tls]", "token_ttl = 0\n[tls]", "token_ttl", ">= 1"),
        ("coordinator", '5002"\nurl', '5001"\nurl', "servers.name", "two servers"),
        ("coordinator", "127.0.0.1:5002", "127.0.0.1:5001", "servers.url", "two servers"),
        ("coordinator", "https://127.0.0.1:5002", "http://127.0.0.1:5002", "servers.url", "https"),
        ("coordinator", "127.0.0.1:5002", "127.0.0.1:5002/api", "servers.url", "host:port"),
        ("coordinator", "127.0.0.1:5002", "me:pw@127.0.0.1:5002", "servers.url", "host:port"),
        ("coordinator", ADDRESSES, "", "servers", "missing"),
        ("coordinator", "[tls]", "deadline = 0\n[tls]", "deadline", "> 0"),
        ("coordinator", "[tls]", "deadline = nan\n[tls]", "deadline", "correct the value"),
        ("coordinator", "[tls]", "lanes = 1000\n[tls]", "lanes", "<= 64"),
        ("coordinator", "[tls]", "hedge_floor = 0.5\n[tls]", "hedge_floor", "hedge_ceiling"),
        ("coordinator", "[tls]", "retry_share = 2\n[tls]", "retry_share", "<= 1"),
        ("client", '["https://127.0.0.1:8000"]', "[]", "coordinators", "length >= 1"),
        ("client", '["https://127.0.0.1:8000"]', '"https://x:1"', "coordinators", "array"),
        ("client", "https://127.0.0.1:8000", "127.0.0.1:8000", "coordinators", "https"),
        ("client", "https://127.0.0.1:8000", "https://127.0.0.1", "coordinators", "host:port"),
        ("client", "[tls]", "deadline = inf\n[tls]", "deadline", "correct the value"),
    ],
)
def test_wrong_value_is_told_with_file_key_and_remedy(
    request: pytest.FixtureRequest, kind: str, old: str, new: str, key: str, fact: str
) -> None:
    path: Path = request.getfixturevalue(kind)
    load_any_settings(path)
    _edit(path, old, new)
    line = _refusal(path)
    assert line.startswith(f"sealrelay: {path}: {key}: ")
    assert fact in line
    assert any(
        word in line for word in ("correct", "add it", "remove", "longer", "its own", "one of")
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:S3cret@host/db",
        "postgresql://me:S3cret@host1:1,host2:2/db",
        "postgresql://me:@host/db",
        "postgresql://me@host/db?password=S3cret",
        "postgresql:///db?user=me&password=S3cret",
        "postgresql://me@host/db?sslpassword=S3cret",
        "postgresql://me:S3/cret@host/db",
        "postgresql://me:3/S3cret@host/db",
        "postgresql://me:3?S3cret@host/db",
        "postgresql://me:3#S3cret@host/db",
    ],
)
def test_password_in_the_stores_url_is_refused_and_not_repeated(server: Path, url: str) -> None:
    _edit(server, "sqlite:////nonexistent/messages.db", url)
    line = _refusal(server)
    assert line.startswith(f"sealrelay: {server}: store: the URL holds a password")
    assert "put it in a passfile" in line
    assert "S3cret" not in line
    assert "host" not in line


def test_passfile_of_the_store_must_be_one_that_libpq_reads(server: Path, tmp_path: Path) -> None:
    passfile = tmp_path / "passfile"
    url = f"postgresql://me@host1:1,host2:2/db?passfile={passfile}&sslmode=verify-full"
    _edit(server, "sqlite:////nonexistent/messages.db", url)
    line = _refusal(server)
    assert f"{passfile}: passfile in store of {server}: No such file or directory" in line
    passfile.write_text("*:*:*:*:S3cret\n")
    passfile.chmod(0o640)
    line = _refusal(server)
    assert f"{passfile}: passfile in store of {server}: others than its owner may use it" in line
    assert "0600" in line
    passfile.chmod(0o600)
    assert load_settings(server, ServerSettings).store == url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///db?host=/run/postgresql",
        "postgresql://me@host:/db",
        "postgresql://[::1]:5432,[fe80::1],host:5433/d%40b?application_name=a%40b",
    ],
)
def test_urls_of_every_form_that_libpq_takes_are_taken(server: Path, url: str) -> None:
    _edit(server, "sqlite:////nonexistent/messages.db", url)
    assert load_settings(server, ServerSettings).store == url


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        (None, "or run this as root or as a member of the servers' group"),
        ("postgresql://me@127.0.0.1:1/db", "or see that the database can be reached from here"),
    ],
)
def test_messages_that_cannot_be_read_are_told_with_what_helps(
    server: Path, url: str | None, remedy: str
) -> None:
    """The group is no help with PostgreSQL: the passfile is the servers' own."""
    if url is not None:
        _edit(server, "sqlite:////nonexistent/messages.db", url)
    result = run_main("messages", "count", "--config", str(server))
    assert result.code == 8
    assert f"run `sealrelay migrate` first, {remedy}" in result.err


def test_settings_of_another_service_are_refused(server: Path, coordinator: Path) -> None:
    result = run_main("coordinator", "--config", str(server))
    assert result.code == 8
    assert f"{server}: service: this file is for a server" in result.err
    result = run_main("send", "--config", str(coordinator), "hello")
    assert result.code == 8
    assert f"{coordinator}: service: this file is for a coordinator" in result.err


def test_what_is_no_toml_is_refused(server: Path) -> None:
    server.write_text('service = "server\n')
    assert f"{server}: not a TOML file" in _refusal(server)
    server.write_bytes(b"\xff\xfe\x00")
    assert f"{server}: not a TOML file" in _refusal(server)


def test_missing_settings_file_is_told(tmp_path: Path) -> None:
    line = _refusal(tmp_path / "server.toml")
    assert f"{tmp_path}/server.toml: settings file: No such file" in line
    assert "deploy it first" in line
    assert "Is a directory" in _refusal(tmp_path)


@pytest.mark.parametrize("name", ["cert", "key", "ca"])
def test_missing_or_wrong_tls_file_is_told(server: Path, name: str) -> None:
    file = server.parent / f"{name}.pem"
    file.write_text("not PEM")
    line = _refusal(server)
    assert f"tls.{name}" in line
    assert "run the playbook" in line
    file.unlink()
    line = _refusal(server)
    assert f"{file}: tls.{name} of {server}: No such file" in line
    assert "run the playbook" in line


def test_crl_is_checked_where_there_is_one(server: Path, authority: Authority) -> None:
    _edit(server, "[tls]", '[tls]\ncrl = "crl.pem"')
    crl = server.parent / "crl.pem"
    assert f"{crl}: tls.crl of {server}: No such file" in _refusal(server)
    crl.write_text("not PEM")
    assert f"{crl}: tls.crl of {server}: not a CRL in PEM; run the playbook" in _refusal(server)
    crl.write_bytes(Authority().make_crl())
    assert "the CRL is not signed by a CA that is trusted" in _refusal(server)
    crl.write_bytes(authority.make_crl())
    settings = load_settings(server, ServerSettings)
    assert (settings.tls.crl, settings.tls.crl_expired) == (str(crl), "accept")
    _edit(server, "[tls]", '[tls]\ncrl_expired = "ignore"')
    assert f"{server}: tls.crl_expired: " in _refusal(server)


def test_key_of_another_certificate_is_refused(server: Path, client: Path) -> None:
    (server.parent / "key.pem").write_bytes((client.parent / "key.pem").read_bytes())
    assert "key and certificate do not fit" in _refusal(server)


def test_encrypted_key_is_refused(server: Path) -> None:
    file = server.parent / "key.pem"
    key = load_pem_private_key(file.read_bytes(), password=None)
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    line = _refusal(server)
    assert line.startswith(f"sealrelay: {file}: tls.key of {server}: the key is encrypted")


def test_leaf_of_another_name_role_or_trust_domain_is_refused(
    server: Path, authority: Authority
) -> None:
    load_any_settings(server)
    for uri in (
        spiffe_id("server", "node1-5002"),
        spiffe_id("coordinator", "node1-5001"),
        spiffe_id("server", "node1-5001", "other.internal"),
    ):
        authority.issue(server.parent, Leaf([uri]))
        line = _refusal(server)
        assert f"the certificate is {uri}" in line
        assert "make both agree" in line


def test_leaf_without_identity_is_refused(server: Path, authority: Authority) -> None:
    authority.issue(server.parent, Leaf([]))
    assert "0 URI SANs" in _refusal(server)


def test_empty_or_broken_keyring_is_told_and_not_shown(client: Path) -> None:
    keys = client.parent / "payload.keys"
    load_any_settings(client)
    good = keys.read_text().splitlines()[-1]
    keys.write_text("# nothing\n")
    assert f"{keys}: not a keyring: it holds no key" in _refusal(client)
    keys.write_text(good[:-4] + "\n")
    line = _refusal(client)
    assert f"{keys}: not a keyring: one of its lines" in line
    assert "sealrelay keygen" in line
    assert good[:10] not in line
    keys.unlink()
    assert f"{keys}: payload keys: No such file" in _refusal(client)


def test_every_keyring_of_a_server_is_checked(server: Path) -> None:
    folder = server.parent / "keyrings"
    (folder / "notes.txt").write_text("not a keyring, and not named like one")
    assert set(load_keyrings(folder)) == {"client1"}
    (folder / "client2.keys").write_text("")
    assert f"{folder}/client2.keys: not a keyring" in _refusal(server)
    (folder / "client2.keys").unlink()
    (folder / "client1.keys").unlink()
    assert load_keyrings(folder) == {}
    (folder / "notes.txt").unlink()
    folder.rmdir()
    assert f"{folder}: keyrings: No such file" in _refusal(server)


@pytest.mark.parametrize(
    ("name", "users"),
    [
        ("server.toml", "root, or as a member of the group"),
        ("key.pem", "root, or as a member of the group"),
        ("keyrings/client1.keys", "root, or as a member of the group"),
        ("passfile", "root or its owner"),  # of mode 0600, whatever the group
    ],
)
def test_unreadable_file_is_told(server: Path, name: str, users: str) -> None:
    file = server.parent / name
    if name == "passfile":
        file.touch()
        _edit(server, "sqlite:////nonexistent/messages.db", f"postgresql:///db?passfile={file}")
    file.chmod(0)
    command = [sys.executable, "-m", "sealrelay", "check-config", str(server)]
    if os.geteuid() == 0:  # root reads everything, unless it gives up the right to
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 8, result
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"sealrelay: {file}: ")
    assert f"permission denied; run as {users}" in line
    file.chmod(0o600)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result


@pytest.mark.parametrize(
    ("bind", "parts"),
    [
        ("127.0.0.1:5001", ("127.0.0.1", 5001)),
        ("[::1]:8000", ("::1", 8000)),
        ("node1.example:443", ("node1.example", 443)),
    ],
)
def test_bind_and_url_are_split(bind: str, parts: tuple[str, int]) -> None:
    assert split_bind(bind) == parts
    assert split_url(f"https://{bind}") == parts
    assert split_url(f"https://{bind}/") == parts


@pytest.mark.parametrize("bind", ["", "x", "x:", ":1", "x:0", "x:y", "x:1/", "u@x:1", "[::1:1"])
def test_wrong_bind_and_url_are_refused(bind: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        split_bind(bind)
    with pytest.raises(ValueError, match=r"."):
        split_url(f"https://{bind}/x")
