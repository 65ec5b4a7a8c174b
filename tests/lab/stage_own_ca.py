"""A company's CA in place of ours: requests are written, signed elsewhere, and read back in.

On a deployed node, by name: it plays the deployment four times, too long for every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.lab.peers import CLIENT1, COORDINATOR, SERVER
from tests.support.node import Control, Node, Play, Sender
from tests.support.pki import Authority, spiffe_id

_RENEW = "playbooks/renew.yml"
_COMPANY = "CN=Company CA"


@dataclass
class _Company:
    """Its CA, and the folder from which the deployment takes what it has made."""

    control: Control
    authority: Authority
    pki: Path

    def renew(self) -> Play:
        return self.play(_RENEW)

    def play(self, playbook: str, **variables: Any) -> Play:
        source = {"ca_source": "requests", "ca_dir": str(self.pki), "ca_passphrase": ""}
        return self.control.play(playbook, variables={**source, **variables})

    def sign(self, request: Path, uris: list[str] | None = None) -> None:
        leaf = self.pki / "leaves" / f"{request.stem}.pem"
        leaf.write_bytes(self.authority.sign_request(request.read_bytes(), uris))


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


def _read_issuer(node: Node, folder: str) -> str:
    leaf = x509.load_pem_x509_certificate(node.read(f"{folder}/cert.pem").encode())
    return leaf.issuer.rfc4514_string()


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
