"""A company's CA in place of ours: it signs the requests that are written out, or brings the keys.

On a deployed node, by name: it plays the deployment many times, too long for every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.lab.peers import CLIENT1, COORDINATOR, SERVER
from tests.lab.test_operations import FOLDERS
from tests.support.node import Control, Node, Play, Sender, find_secrets
from tests.support.pki import Authority, spiffe_id

_RENEW = "playbooks/renew.yml"
_COMPANY = "CN=Company CA"


@dataclass
class _Company:
    """Its CA, and the folder from which the deployment takes what it has made."""

    control: Control
    authority: Authority
    pki: Path
    source: str = "requests"
    secrets: list[str] = field(default_factory=list)
    """The keys that it brought, as they stand in their files."""

    def renew(self, *arguments: str) -> Play:
        return self.play(_RENEW, *arguments)

    def play(self, playbook: str, *arguments: str, **variables: Any) -> Play:
        source = {"ca_source": self.source, "ca_dir": str(self.pki), "ca_passphrase": ""}
        return self.control.play(playbook, *arguments, variables={**source, **variables})

    def sign(self, request: Path, uris: list[str] | None = None) -> None:
        leaf = self.pki / "leaves" / f"{request.stem}.pem"
        leaf.write_bytes(self.authority.sign_request(request.read_bytes(), uris))

    def bring_leaf(self, like: x509.Certificate) -> Path:
        """Put a leaf of a new key, which says of itself what another does, beside that key."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder(like.subject)
        for kind in (
            x509.SubjectAlternativeName,
            x509.BasicConstraints,
            x509.KeyUsage,
            x509.ExtendedKeyUsage,
        ):
            extension = like.extensions.get_extension_for_class(kind)
            request = request.add_extension(extension.value, extension.critical)
        signed = self.authority.sign_request(
            request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        )
        names = like.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        leaf = self.pki / "leaves" / f"{'.'.join(uri.split('/')[-2:])}.pem"
        leaf.write_bytes(signed)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        leaf.with_suffix(".key").write_bytes(pem)
        self.secrets += pem.decode().splitlines()[1:-1]
        return leaf


@pytest.fixture
def company(control: Control, node: Node, tmp_path: Path) -> Iterator[_Company]:
    authority = Authority("Company CA")
    (tmp_path / "leaves").mkdir()
    # Both are trusted while leaves of one give way to those of the other.
    ours = [(control.pki / name).read_bytes() for name in ("ca.pem", "crl.pem")]
    (tmp_path / "ca.pem").write_bytes(authority.pem + ours[0])
    (tmp_path / "crl.pem").write_bytes(authority.make_crl() + ours[1])
    yield _Company(control, authority, tmp_path)
    # The keys are those that our own leaves were of.
    play = control.play(_RENEW)
    assert play.code == 0, play.out
    node.settle()


def _read_leaf(node: Node, folder: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(node.read(f"{folder}/cert.pem").encode())


def _read_issuer(node: Node, folder: str) -> str:
    return _read_leaf(node, folder).issuer.rfc4514_string()


@pytest.mark.usefixtures("settled")
def test_a_companys_ca_takes_the_place_of_ours_while_messages_flow(
    node: Node, company: _Company
) -> None:
    play = company.renew()
    assert play.code != 0
    assert "6 of 6 leaves are not there yet; have the requests in" in play.text
    requests = sorted((company.pki / "requests").glob("*.csr"))
    assert len(requests) == 6

    for request in requests:
        company.sign(request)
    wrong = company.pki / "requests" / "server.node1-5001.csr"
    company.sign(wrong, [spiffe_id("server", "node1-5002")])
    play = company.renew()
    assert play.code != 0
    assert "server.node1-5001.pem is of the identity" in play.text
    assert play.changed == 0
    for folder in (SERVER, COORDINATOR, CLIENT1):
        assert _read_issuer(node, folder) != _COMPANY

    company.sign(wrong)
    with Sender(node) as sender:
        sender.wait_for_more(20)
        play = company.renew()
        sender.wait_for_more(20)
    assert play.code == 0, play.out
    sender.finish()
    for folder in (SERVER, COORDINATOR, CLIENT1):
        assert _read_issuer(node, folder) == _COMPANY
    assert node.send("signed elsewhere")

    play = company.play("playbooks/revoke.yml", name="client1")
    assert play.code != 0
    assert "it is that CA which revokes" in play.text


@pytest.mark.usefixtures("settled")
def test_keys_and_leaves_that_a_company_brings_are_used_and_replaced_while_messages_flow(
    node: Node, company: _Company
) -> None:
    company.source = "files"
    ours = {folder: _read_leaf(node, folder) for folder in FOLDERS}
    brought = {folder: company.bring_leaf(leaf) for folder, leaf in ours.items()}
    key = brought[SERVER].with_suffix(".key")
    other = brought[COORDINATOR].with_suffix(".key")
    right, wrong = key.read_bytes(), other.read_bytes()
    key.write_bytes(wrong)
    play = company.renew()
    assert play.code != 0
    assert "server.node1-5001" in play.text
    assert play.changed == 0
    assert {folder: _read_leaf(node, folder) for folder in FOLDERS} == ours

    key.write_bytes(right)
    with Sender(node) as sender:
        sender.wait_for_more(20)
        play = company.renew()
        assert play.code == 0, play.out
        first = {folder: _read_leaf(node, folder) for folder in FOLDERS}
        again = company.renew()
        assert (again.code, again.changed) == (0, 0), again.out
        for leaf in ours.values():
            company.bring_leaf(leaf)
        sender.wait_for_more(20)
        play = company.renew("-vvv", "--diff")
        assert play.code == 0, play.out
        sender.wait_for_more(20)
    sender.finish()
    second = {folder: _read_leaf(node, folder) for folder in FOLDERS}
    for folder in FOLDERS:
        assert first[folder].issuer.rfc4514_string() == _COMPANY, folder
        assert second[folder].issuer.rfc4514_string() == _COMPANY, folder
        assert first[folder].serial_number != second[folder].serial_number, folder
        stored = node.read(f"{folder}/key.pem")
        assert stored == brought[folder].with_suffix(".key").read_text(), folder
    assert not find_secrets(play.out, company.secrets)
    assert node.send("of keys that were brought")
