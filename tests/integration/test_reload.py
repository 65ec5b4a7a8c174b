"""New certificates, keys, CAs, CRLs and keyrings reach a running service, or are refused."""

from __future__ import annotations

import datetime
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from sealrelay.seal import generate_keyring
from tests.integration.test_messages import seal
from tests.support.command import run_main
from tests.support.deployment import PATIENCE, Deployment, Service, put_file, wait_until
from tests.support.http import ask, make_context, open_connection, post_json
from tests.support.metrics import scrape
from tests.support.pki import CLIENT_ONLY, Authority, Leaf, spiffe_id

_HOUR = datetime.timedelta(hours=1)
_RELOADED = "Reloaded the TLS files"
_KEPT = "in use stay in use, the new ones don't fit: "


@pytest.fixture(scope="module")
def own_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("reload") / "deployment")
    made.publish_crl()
    for service in made.services:
        text = service.config.read_text()
        service.config.write_text(text.replace("[tls]", "workers = 2\n[tls]"))
    made.start()
    yield made
    made.stop()


class Told:
    """What a service has said since this was made."""

    def __init__(self, service: Service) -> None:
        self._service, self._mark = service, len(service.log)

    @property
    def text(self) -> str:
        return self._service.log[self._mark :]

    def wait_for(self, text: str, times: int = 2) -> None:
        """``times``: as often as the service has workers."""
        wait_until(lambda: self.text.count(text) >= times, f"{self._service.name} says {text!r}")


@pytest.fixture
def deployed(own_deployment: Deployment) -> Iterator[Deployment]:
    """All files are put back afterwards, and found good again."""
    files = {
        path: path.read_bytes()
        for service in own_deployment.services
        for path in service.config.parent.glob("*.pem")
    }
    yield own_deployment
    for service in own_deployment.services:
        told = Told(service)
        changed = [path for path in files if path.parent == service.config.parent]
        changed = [path for path in changed if _read(path) != files[path]]
        for path in changed:
            put_file(path, files[path])
        if changed:
            # whether the others were in use or not, this one is new
            put_file(service.config.parent / "crl.pem", own_deployment.authority.make_crl())
            told.wait_for(_RELOADED)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def folder_of(service: Service) -> Path:
    return service.config.parent


def uri_of(service: Service) -> str:
    return spiffe_id(service.kind, service.name)


def shown_certificate(service: Service, peer: Path) -> str:
    with open_connection(service, peer) as connection:
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        return ssl.DER_cert_to_PEM_cert(der)


def replace_leaf(
    deployment: Deployment, service: Service, *names: str, leaf: Leaf | None = None
) -> Path:
    """Make another leaf, and put those of its files into place that are named."""
    new = folder_of(service) / "new"
    deployment.authority.issue(new, leaf or Leaf([uri_of(service)]))
    for name in names:
        put_file(folder_of(service) / name, (new / name).read_bytes())
    return new


def test_new_certificate_and_key_are_shown_without_restart_or_lost_message(
    deployed: Deployment,
) -> None:
    processes = {service.name: service.processes for service in deployed.services}
    told_coordinator = Told(deployed.coordinator)
    client = deployed.client_config("client1").parent
    stop, tries = threading.Event(), []

    def send() -> None:
        with deployed.client() as sender:
            while not stop.is_set():
                tries.append(sender.send("during the reload").tries)

    sending = threading.Thread(target=send)
    sending.start()
    try:
        for service in deployed.services:
            told = Told(service)
            leaf = Leaf([uri_of(service)], ends=_HOUR / 2)
            new = replace_leaf(deployed, service, "cert.pem", "key.pem", leaf=leaf)
            told.wait_for(_RELOADED)
            shown = {shown_certificate(service, client) for _ in range(8)}
            assert shown == {(new / "cert.pem").read_text()}
            expiry = x509.load_pem_x509_certificate((new / "cert.pem").read_bytes())
            name = "sealrelay_certificate_expiry_timestamp_seconds"
            shown_expiry = scrape(deployed, service)(name, file="cert")
            assert shown_expiry == expiry.not_valid_after_utc.timestamp()
        done = len(tries)
        wait_until(lambda: len(tries) > done + 20, "messages are sent with the new leaves")
    finally:
        stop.set()
        sending.join()
    assert set(tries) == {1}
    assert "failed" not in told_coordinator.text
    assert processes == {service.name: service.processes for service in deployed.services}


def test_probe_waits_until_every_worker_uses_what_is_there(deployed: Deployment) -> None:
    for service in deployed.services:
        new = replace_leaf(deployed, service, "cert.pem", "key.pem")
        probed = service.probe("--reloaded", "--wait", str(PATIENCE))
        assert (probed.code, probed.err) == (0, "")
        shown = {
            shown_certificate(service, deployed.client_config("client1").parent) for _ in range(8)
        }
        assert shown == {(new / "cert.pem").read_text()}


def test_probe_tells_that_what_is_there_is_not_used(deployed: Deployment) -> None:
    server = deployed.servers[0]
    # as good as the file that the service looks at
    (folder_of(server) / "other.pem").write_bytes((folder_of(server) / "ca.pem").read_bytes())
    config = server.config.with_name("other.toml")
    config.write_text(server.config.read_text().replace("ca.pem", "other.pem"))
    probed = run_main("probe", "--config", str(config), "--reloaded", "--wait", "2")
    assert probed.code == 9
    assert "server1 does not use the files that are there; see its log" in probed.err


def test_kept_alive_connections_of_the_coordinator_are_made_anew(deployed: Deployment) -> None:
    """Its new leaf counts at once: the old one may be revoked a moment later."""
    old = deployed.folder / "old-coordinator"
    old.mkdir(exist_ok=True)
    (old / "cert.pem").write_bytes((folder_of(deployed.coordinator) / "cert.pem").read_bytes())
    told = Told(deployed.coordinator)
    replace_leaf(deployed, deployed.coordinator, "cert.pem", "key.pem")
    told.wait_for(_RELOADED)
    marks = [Told(server) for server in deployed.servers]
    deployed.publish_crl(old)
    for mark in marks:
        mark.wait_for(_RELOADED)
    with deployed.client() as client:
        assert {client.send("after").tries for _ in range(10)} == {1}
    assert "failed" not in told.text
    assert all("Refused" not in mark.text for mark in marks)


def _key_of_another(deployment: Deployment, service: Service) -> str:
    replace_leaf(deployment, service, "key.pem")
    return "key.pem: key and certificate do not fit"


def _certificate_without_its_key(deployment: Deployment, service: Service) -> str:
    replace_leaf(deployment, service, "cert.pem")
    return "key.pem: key and certificate do not fit"


def _encrypted_key(deployment: Deployment, service: Service) -> str:
    file = folder_of(service) / "key.pem"
    key = load_pem_private_key(file.read_bytes(), password=None)
    locked = BestAvailableEncryption(b"secret")
    put_file(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    return "key.pem: the key is encrypted"


def _other_identity(deployment: Deployment, service: Service) -> str:
    leaf = Leaf([spiffe_id(service.kind, "other")])
    replace_leaf(deployment, service, "cert.pem", "key.pem", leaf=leaf)
    return f"cert.pem: the certificate is {leaf.uris[0]}"


def _no_identity(deployment: Deployment, service: Service) -> str:
    replace_leaf(deployment, service, "cert.pem", "key.pem", leaf=Leaf([]))
    return "cert.pem: the certificate has 0 URI SANs instead of one"


def _expired(deployment: Deployment, service: Service) -> str:
    leaf = Leaf([uri_of(service)], starts=-2 * _HOUR, ends=-_HOUR)
    replace_leaf(deployment, service, "cert.pem", "key.pem", leaf=leaf)
    return "cert.pem: peers would refuse it: certificate verify failed: certificate has expired"


def _not_yet_valid(deployment: Deployment, service: Service) -> str:
    leaf = Leaf([uri_of(service)], starts=_HOUR, ends=2 * _HOUR)
    replace_leaf(deployment, service, "cert.pem", "key.pem", leaf=leaf)
    return "certificate is not yet valid"


def _client_usage(deployment: Deployment, service: Service) -> str:
    leaf = Leaf([uri_of(service)], usages=CLIENT_ONLY)
    replace_leaf(deployment, service, "cert.pem", "key.pem", leaf=leaf)
    return "cert.pem: peers would refuse it: certificate verify failed: unsuitable certificate"


def _foreign_ca(deployment: Deployment, service: Service) -> str:
    new = Authority().issue(folder_of(service) / "new", Leaf([uri_of(service)]))
    for name in ("cert.pem", "key.pem"):
        put_file(folder_of(service) / name, (new / name).read_bytes())
    return "cert.pem: peers would refuse it: certificate verify failed: "


def _ca_of_others(deployment: Deployment, service: Service) -> str:
    put_file(folder_of(service) / "ca.pem", Authority("Other CA").pem)
    return "crl.pem: the CRL is not signed by a CA that is trusted"


def _no_ca(deployment: Deployment, service: Service) -> str:
    put_file(folder_of(service) / "ca.pem", b"not PEM")
    return "ca.pem: not a certificate in PEM"


def _no_certificate(deployment: Deployment, service: Service) -> str:
    put_file(folder_of(service) / "cert.pem", b"")
    return "cert.pem: not a certificate in PEM"


def _no_key(deployment: Deployment, service: Service) -> str:
    file = folder_of(service) / "key.pem"
    put_file(file, file.read_bytes()[:-60])
    return "key.pem: not a private key in PEM"


def _missing(deployment: Deployment, service: Service) -> str:
    (folder_of(service) / "crl.pem").rename(folder_of(service) / "crl.away")
    return "crl.pem: No such file or directory"


def _no_crl(deployment: Deployment, service: Service) -> str:
    put_file(folder_of(service) / "crl.pem", deployment.authority.pem)
    return "crl.pem: not a CRL in PEM"


def _half_a_crl(deployment: Deployment, service: Service) -> str:
    crl = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    put_file(folder_of(service) / "crl.pem", crl)
    return "crl.pem: the CRL cannot be read"


def _crl_of_others(deployment: Deployment, service: Service) -> str:
    crl = Authority(deployment.authority.name).make_crl()
    put_file(folder_of(service) / "crl.pem", crl)
    return "crl.pem: the CRL is not signed by a CA that is trusted"


@pytest.mark.parametrize(
    "spoil",
    [
        _key_of_another,
        _certificate_without_its_key,
        _encrypted_key,
        _other_identity,
        _no_identity,
        _expired,
        _not_yet_valid,
        _client_usage,
        _foreign_ca,
        _ca_of_others,
        _no_ca,
        _no_certificate,
        _no_key,
        _missing,
        _no_crl,
        _half_a_crl,
        _crl_of_others,
    ],
)
def test_set_that_does_not_fit_is_told_once_and_changes_nothing(
    deployed: Deployment, spoil: Callable[[Deployment, Service], str]
) -> None:
    server = deployed.servers[0]
    peer = folder_of(deployed.coordinator)
    shown = shown_certificate(server, peer)
    before = scrape(deployed, server)
    told = Told(server)
    fact = spoil(deployed, server)
    # with two files to replace, a look may come in between and find one of them wrong
    told.wait_for(fact)
    time.sleep(1.5)  # several looks
    lines = [line for line in told.text.splitlines() if fact in line]
    assert len(lines) == 2, "one line for each worker"
    assert all(f"ERROR The TLS files {_KEPT}" in line for line in lines)
    assert "PRIVATE" not in told.text
    assert _RELOADED not in told.text
    assert {shown_certificate(server, peer) for _ in range(4)} == {shown}
    name = "sealrelay_reloads_total"
    grown = scrape(deployed, server).grown(before, name, files="TLS files", result="refused")
    assert grown >= 2
    with deployed.client() as client:
        assert {client.send("still").tries for _ in range(4)} == {1}


def test_files_written_bit_by_bit_are_taken_when_they_are_complete(deployed: Deployment) -> None:
    server = deployed.servers[0]
    told = Told(server)
    new = replace_leaf(deployed, server)
    for name in ("cert.pem", "key.pem"):
        data = (new / name).read_bytes()
        with (folder_of(server) / name).open("wb", buffering=0) as file:
            for number in range(0, len(data), 200):
                file.write(data[number : number + 200])
                time.sleep(0.05)
    told.wait_for(_RELOADED)
    assert (
        shown_certificate(server, folder_of(deployed.coordinator)) == (new / "cert.pem").read_text()
    )


def test_leaf_is_taken_as_soon_as_it_is_valid(deployed: Deployment) -> None:
    """A clock that is a little late costs a line in the log, not the certificate."""
    server = deployed.servers[0]
    told = Told(server)
    leaf = Leaf([uri_of(server)], starts=datetime.timedelta(seconds=4))
    replace_leaf(deployed, server, "cert.pem", "key.pem", leaf=leaf)
    told.wait_for("certificate is not yet valid")
    told.wait_for(_RELOADED)


def test_other_ca_takes_over_while_messages_flow(deployed: Deployment) -> None:
    """Both CAs are trusted for a time, then only the new one; who is left with the old is out."""
    old, new = deployed.authority, Authority("New CA")
    client = deployed.client_config("client1").parent
    with deployed.client() as sender:

        def put(name: str, data: bytes) -> None:
            marks = [Told(service) for service in deployed.services]
            for service in deployed.services:
                put_file(folder_of(service) / name, data)
            for mark in marks:
                mark.wait_for(_RELOADED)
            assert sender.send(f"with the new {name}").tries == 1

        put("ca.pem", old.pem + new.pem)
        put("crl.pem", old.make_crl() + new.make_crl())
        put("ca.pem", new.pem + old.pem)
        own = deployed.folder / "client-of-new-ca"
        new.issue(own, Leaf([spiffe_id("client", "client1")]))
        (own / "ca.pem").write_bytes(old.pem)
        token = seal(deployed).text
        for folder in (own, client):
            answer = post_json(deployed.coordinator, folder, "/api/data", {"data": token})
            assert answer.status == 200

    with open_connection(deployed.servers[0], folder_of(deployed.coordinator)) as kept:
        told = Told(deployed.servers[0])
        made = new.issue(
            folder_of(deployed.servers[0]) / "new", Leaf([uri_of(deployed.servers[0])])
        )
        for name in ("cert.pem", "key.pem", "ca.pem"):
            put_file(folder_of(deployed.servers[0]) / name, (made / name).read_bytes())
        put_file(folder_of(deployed.servers[0]) / "crl.pem", new.make_crl())
        told.wait_for(_RELOADED)
        assert kept.recv(1) == b""
        told.wait_for("coordinator/coordinator1: it is of a CA that is not trusted", 1)
    context = make_context(folder_of(deployed.coordinator))
    context.load_verify_locations(cadata=new.pem.decode())
    with pytest.raises(ssl.SSLError, match=r"UNKNOWN_CA|DECRYPT_ERROR"):
        ask(deployed.servers[0], context, "GET", "/healthz")


# Keyrings


def test_new_keyring_is_used_without_a_restart(deployed: Deployment) -> None:
    server = deployed.servers[0]
    marks = [Told(server) for server in deployed.servers]
    config = deployed.add_client("client7")
    for mark in marks:
        mark.wait_for("Reloaded the keyrings")
    keyring = deployed.keyrings / "client7.keys"
    old = keyring.read_text()
    with deployed.client("client7") as client:
        assert client.send("with the first key").tries == 1
        sealed_before = client.seal("sealed with the first key, sent later")
    new = generate_keyring()
    marks = [Told(server) for server in deployed.servers]
    put_file(keyring, (new + old).encode())
    put_file(config.with_name("payload.keys"), new.encode())
    for mark in marks:
        mark.wait_for("Reloaded the keyrings")
    with deployed.client("client7") as client:
        assert client.send("with the second key").tries == 1
        assert client.send_token(sealed_before).tries == 1
    marks = [Told(server) for server in deployed.servers]
    keyring.unlink()
    for mark in marks:
        mark.wait_for("Reloaded the keyrings")
    token = seal(deployed, client="client7").text
    peer = folder_of(deployed.coordinator)
    answer = post_json(
        server, peer, "/api/batch", {"messages": [{"client": "client7", "data": token}]}
    )
    assert answer.json()["outcomes"][0]["problem"] == "token-refused"


def test_broken_keyring_is_told_and_not_shown_and_the_old_ones_stay(deployed: Deployment) -> None:
    keyring = deployed.keyrings / "client1.keys"
    good = keyring.read_text()
    told = Told(deployed.servers[0])
    key = good.splitlines()[-1]
    put_file(keyring, key[:-4].encode())
    told.wait_for(f"ERROR The keyrings {_KEPT}{keyring}: not a keyring: one of its lines")
    assert key[:12] not in told.text
    with deployed.client() as client:
        assert client.send("with the old key").tries == 1
    # and what has nothing to do with it is reloaded all the same
    deployed.publish_crl()
    told.wait_for(_RELOADED)
    put_file(keyring, good.encode())
    told.wait_for("Reloaded the keyrings")
