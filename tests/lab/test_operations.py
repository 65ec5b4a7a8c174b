"""Certificates, CRLs and the CA are replaced, and clients revoked and added, under load."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from tests.lab.peers import CLIENT1, Peer, seal
from tests.support.loads import Load
from tests.support.node import COORDINATOR, SERVERS, Control, Node, wait_for

CLIENT2 = "/etc/sealrelay/clients/client2"
OPERATOR = "/etc/sealrelay/operator"
FOLDERS = (
    CLIENT1,
    CLIENT2,
    "/etc/sealrelay/coordinator",
    OPERATOR,
    "/etc/sealrelay/servers/5001",
    "/etc/sealrelay/servers/5002",
)
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Leaf:
    serial: int
    issuer: x509.Name
    key: bytes
    """The public one."""


def leaves(node: Node) -> dict[str, Leaf]:
    found = {}
    for folder in FOLDERS:
        certificate = x509.load_pem_x509_certificate(node.read(f"{folder}/cert.pem").encode())
        identifier = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
        found[folder] = Leaf(certificate.serial_number, certificate.issuer, identifier.digest)
    return found


def processes(node: Node) -> list[list[int]]:
    return [node.pids(unit) for unit in (*SERVERS, COORDINATOR)]


def load_ca(control: Control) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    pem = (control.pki / "ca.key").read_bytes()
    key = load_pem_private_key(pem, control.passphrase.encode())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate((control.pki / "ca.pem").read_bytes()), key


def look_at_pki(control: Control) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in control.pki.rglob("*") if path.is_file()}


@pytest.fixture
def old_client2(node: Node, scratch: str) -> str:
    """A copy of client2's leaf and key, as of now."""
    node.run("cp", "-a", CLIENT2, f"{scratch}/old")
    return f"{scratch}/old"


@pytest.fixture(autouse=True)
def everybody_is_in(node: Node, control: Control) -> Iterator[None]:
    """Whatever a test leaves half done is finished."""
    yield
    if (control.pki / "next").exists() or (control.pki / "previous").exists():
        play = control.play("playbooks/rotate_ca.yml")
        assert play.code == 0, play.out
    if node.try_send("still in", client="client2").returncode != 0:
        play = control.play(
            "playbooks/add_client.yml", variables={"certificate_readmit": True, "name": "client2"}
        )
        assert play.code == 0, play.out


@pytest.mark.usefixtures("settled")
def test_every_certificate_is_rotated_under_load(
    node: Node, control: Control, scratch: str
) -> None:
    before, running = leaves(node), processes(node)
    with Load(node, scratch) as load:
        play = control.play("playbooks/rotate_certificates.yml")
    assert play.code == 0, play.out
    after = leaves(node)
    for folder in FOLDERS:
        assert after[folder].serial != before[folder].serial, folder
        assert after[folder].key != before[folder].key, folder
        assert after[folder].issuer == before[folder].issuer
    assert processes(node) == running, "nothing was restarted"
    assert node.shell("ls /etc/sealrelay/*/*.new /etc/sealrelay/*/*/*.new || true") == ""
    load.assert_all_well()


@pytest.mark.long
@pytest.mark.usefixtures("settled")
def test_the_ca_is_rotated_under_load_and_can_pause_in_between(
    node: Node, control: Control, scratch: str, old_client2: str
) -> None:
    old_ca, running = load_ca(control)[0], processes(node)
    with Load(node, scratch) as load:
        begun = control.play("playbooks/rotate_ca.yml", variables={"withdraw": False})
        assert begun.code == 0, begun.out
        assert {leaf.issuer for leaf in leaves(node).values()} == {load_ca(control)[0].subject}
        assert Peer(node, old_client2).post(seal(node, "of the old CA", "client2")).status == 200
        meanwhile = control.play("playbooks/renew.yml")
        assert (meanwhile.code, meanwhile.changed) == (0, 0), meanwhile.out
        finished = control.play("playbooks/rotate_ca.yml")
        assert finished.code == 0, finished.out
    new_ca = load_ca(control)[0]
    assert new_ca.subject != old_ca.subject
    for folder in FOLDERS:
        trusted = x509.load_pem_x509_certificates(node.read(f"{folder}/ca.pem").encode())
        assert trusted == [new_ca], folder
        assert node.read(f"{folder}/crl.pem").count("BEGIN X509 CRL") == 1
    assert sorted(path.name for path in control.pki.iterdir() if path.is_dir()) == ["issued"]
    assert processes(node) == running, "nothing was restarted"
    load.assert_all_well()
    assert Peer(node, old_client2).post(seal(node, "too late", "client2")).error


@pytest.mark.usefixtures("settled")
def test_a_lost_ca_is_never_made_anew_unasked_and_is_replaced_under_load(
    node: Node, control: Control, scratch: str, tmp_path: Path, old_client2: str
) -> None:
    old_ca, running = load_ca(control)[0], processes(node)
    name = old_ca.subject.rfc4514_string().removeprefix("CN=")
    shutil.move(control.pki, tmp_path / "lost")
    control.pki.mkdir(0o700)
    shutil.copy2(tmp_path / "lost" / "passphrase", control.pki)
    for refused in (control.deploy(), control.play("playbooks/renew.yml")):
        assert refused.code != 0
        assert f"node1 trusts the CA '{name}' (SHA-256 " in refused.text
        assert "-e ca_replace=true" in refused.text
    assert [path.name for path in control.pki.iterdir()] == ["passphrase"]

    with Load(node, scratch) as load:
        play = control.play("playbooks/rotate_ca.yml", variables={"ca_replace": True})
        assert play.code == 0, play.out
    new_ca = load_ca(control)[0]
    assert new_ca.subject != old_ca.subject
    assert {leaf.issuer for leaf in leaves(node).values()} == {new_ca.subject}
    for folder in FOLDERS:
        trusted = x509.load_pem_x509_certificates(node.read(f"{folder}/ca.pem").encode())
        assert trusted == [new_ca], folder
    assert processes(node) == running, "nothing was restarted"
    load.assert_all_well()
    assert Peer(node, old_client2).post(seal(node, "of the lost CA", "client2")).error
    again = control.deploy()
    assert (again.code, again.changed) == (0, 0), again.out


@pytest.mark.usefixtures("settled")
def test_a_revoked_client_is_out_within_seconds_and_may_come_back(
    node: Node, control: Control, scratch: str, old_client2: str
) -> None:
    receipt = node.send("before it is revoked", client="client2")[0]
    with Load(node, scratch, clients=("client2",)) as load:  # over connections that stay open
        wait_for(lambda: len(load.history) > 50, "messages are sent")
        play = control.play("playbooks/revoke.yml", variables={"name": "client2"})
        assert play.code == 0, play.out
        wait_for(lambda: load.history[-1].get("fate") == "refused", "it is refused")
    began = load.history[0]["began"]
    landed = float(node.run("stat", "-c", "%.Y", "/etc/sealrelay/coordinator/crl.pem"))
    answers = [line for line in load.history if "answered" in line]
    last = max(line["answered"] for line in answers if line["fate"] == "acknowledged")
    assert began + last < landed + 5
    load.assert_borne_out()
    assert Peer(node, old_client2).post(seal(node, "revoked", "client2")).error
    assert node.send("beside it", client="client1")
    shown = node.run("sealrelay", "messages", "show", receipt["message_id"])
    assert "before it is revoked" in shown

    refused = control.deploy()
    assert refused.code != 0
    assert "client/client2 of node1 is revoked; take it out of the inventory" in refused.text
    renewed = control.play("playbooks/renew.yml")
    assert (renewed.code, renewed.changed) == (0, 0), renewed.out

    back = control.play(
        "playbooks/add_client.yml", variables={"name": "client2", "certificate_readmit": True}
    )
    assert back.code == 0, back.out
    assert node.send("let in again", client="client2")
    assert Peer(node, old_client2).post(seal(node, "still revoked", "client2")).error


def test_what_is_due_or_broken_is_renewed_and_nothing_else(node: Node, control: Control) -> None:
    ca, key = load_ca(control)
    old = x509.load_pem_x509_certificate(node.read(f"{CLIENT1}/cert.pem").encode())
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), old.serial_number + 1
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    builder = builder.not_valid_before(now - 70 * _DAY).not_valid_after(now + 30 * _DAY)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    node.write(f"{CLIENT1}/cert.pem", pem, "0644")
    crl = x509.CertificateRevocationListBuilder(ca.subject, now - 25 * _DAY, now + 5 * _DAY)
    for entry in x509.load_pem_x509_crl((control.pki / "crl.pem").read_bytes()):
        crl = crl.add_revoked_certificate(entry)
    before = leaves(node)
    node.write(f"{OPERATOR}/cert.pem", "no certificate\n", "0644")
    (control.pki / "crl.pem").write_bytes(crl.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))

    renewed = control.play("playbooks/renew.yml")
    assert renewed.code == 0, renewed.out
    after = leaves(node)
    assert [folder for folder in FOLDERS if after[folder] != before[folder]] == [CLIENT1, OPERATOR]
    assert after[CLIENT1].key != before[CLIENT1].key
    assert after[OPERATOR].key == before[OPERATOR].key
    for path in (control.pki / "crl.pem").read_text(), node.read(f"{CLIENT1}/crl.pem"):
        next_update = x509.load_pem_x509_crl(path.encode()).next_update_utc
        assert next_update is not None
        assert next_update > now + 29 * _DAY


@pytest.mark.long
def test_mistakes_are_told_before_anything_changes(node: Node, control: Control) -> None:
    before = leaves(node), look_at_pki(control)
    for playbook, variables, text in (
        ("revoke.yml", {}, "Whom? Say it with -e name=client1"),
        ("revoke.yml", {"name": "client9"}, "No leaf was ever signed for client/client9"),
        ("add_client.yml", {"name": "client9"}, "No host has a client 'client9'"),
    ):
        play = control.play(f"playbooks/{playbook}", variables=variables)
        assert play.code != 0, play.out
        assert text in play.text
    assert (leaves(node), look_at_pki(control)) == before


@pytest.mark.parametrize(
    ("playbook", "variables"),
    [
        pytest.param("rotate_ca.yml", {}, marks=pytest.mark.long),
        ("revoke.yml", {"name": "client2"}),
    ],
)
def test_a_rehearsal_changes_nothing(
    node: Node, control: Control, playbook: str, variables: dict[str, str]
) -> None:
    before = leaves(node), look_at_pki(control)
    play = control.play(f"playbooks/{playbook}", "--check", "--diff", variables=variables)
    assert play.code == 0, play.out
    assert (leaves(node), look_at_pki(control)) == before
