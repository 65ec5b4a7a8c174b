"""A client that runs for long uses its new certificate, CAs and payload keys as they come."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealrelay.client import Client
from sealrelay.errors import CertificateRefused, TokenRefused
from sealrelay.seal import generate_keyring
from tests.support.deployment import PATIENCE, Deployment, put_file, wait_until
from tests.support.pki import Authority, Leaf, spiffe_id


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path / "deployment")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def sender(deployed: Deployment) -> Iterator[Client]:
    with deployed.client() as client:
        assert client.send("with what it began with").tries == 1
        yield client


def wait_for_services(deployed: Deployment) -> None:
    for service in deployed.services:
        assert service.probe("--reloaded", "--wait", str(PATIENCE)).code == 0


def trust(deployed: Deployment, *authorities: Authority, client: bool = True) -> None:
    folders = [service.config.parent for service in deployed.services]
    folders += [deployed.client_config("client1").parent] if client else []
    for folder in folders:
        put_file(folder / "ca.pem", b"".join(authority.pem for authority in authorities))
    wait_for_services(deployed)


def issue(deployed: Deployment, authority: Authority, *, client: bool = True) -> None:
    """New leaves for all services, and for the client."""
    leaves = {service.config.parent: (service.kind, service.name) for service in deployed.services}
    if client:
        leaves[deployed.client_config("client1").parent] = ("client", "client1")
    for folder, (kind, name) in leaves.items():
        new = authority.issue(folder / "new", Leaf([spiffe_id(kind, name)]))
        for file in ("key.pem", "cert.pem"):
            put_file(folder / file, (new / file).read_bytes())
    wait_for_services(deployed)


def test_other_ca_takes_over_while_a_client_sends(deployed: Deployment, sender: Client) -> None:
    old, new = deployed.authority, Authority("New CA")
    stop, sent = threading.Event(), []

    def send() -> None:
        while not stop.is_set():
            sent.append(sender.send("meanwhile").tries)

    def wait_for_more() -> None:
        done = len(sent)
        wait_until(lambda: len(sent) > done + 20, "messages are sent")

    sending = threading.Thread(target=send)
    sending.start()
    try:
        trust(deployed, old, new)
        wait_for_more()
        issue(deployed, new)
        wait_for_more()
        trust(deployed, new)
        wait_for_more()
    finally:
        stop.set()
        sending.join()


def test_client_that_was_idle_meanwhile_catches_up(deployed: Deployment, sender: Client) -> None:
    new = Authority("New CA")
    trust(deployed, deployed.authority, new)
    issue(deployed, new)
    trust(deployed, new)
    assert sender.send("after all that").seconds < PATIENCE


def test_client_that_gets_nothing_new_is_refused(deployed: Deployment, sender: Client) -> None:
    new = Authority("New CA")
    trust(deployed, deployed.authority, new, client=False)
    issue(deployed, new, client=False)
    trust(deployed, new, client=False)
    with pytest.raises(CertificateRefused):
        sender.send("with the old leaf")


def test_files_that_do_not_fit_are_told_and_not_used(
    deployed: Deployment, sender: Client, caplog: pytest.LogCaptureFixture
) -> None:
    folder = deployed.client_config("client1").parent
    good = (folder / "key.pem").read_bytes()
    new = deployed.authority.issue(folder / "new", Leaf([spiffe_id("client", "client1")]))
    put_file(folder / "key.pem", (new / "key.pem").read_bytes())
    for _ in range(3):
        sender._files._looked_at = 0  # as if some time had passed
        assert sender.send("with what fitted").tries == 1
    assert "key.pem: key and certificate do not fit" in caplog.text
    put_file(folder / "key.pem", good)


def test_new_payload_keys_are_used_at_once(deployed: Deployment, sender: Client) -> None:
    """Also by a client whose old ones do not count any more."""
    keyring, own = generate_keyring(), deployed.client_config("client1").with_name("payload.keys")
    put_file(deployed.keyrings / "client1.keys", keyring.encode())
    wait_for_services(deployed)
    before = sender.seal("sealed before")
    with pytest.raises(TokenRefused):
        sender.send_token(before)
    with pytest.raises(TokenRefused):
        sender.send("with the old key")
    put_file(own, keyring.encode())
    assert sender.send("with the new key").tries == 1


def test_clients_of_one_process_read_their_files_once(
    deployed: Deployment, sender: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    new = Authority("New CA")
    with sender.another() as other:
        other.send("with what both began with")
        trust(deployed, deployed.authority, new)
        issue(deployed, new)
        trust(deployed, new)
        for client in (sender, other):
            client.send("what the old leaf could not")
    assert caplog.text.count("Reloaded the TLS files") == 1
