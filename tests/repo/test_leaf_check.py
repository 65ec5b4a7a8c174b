"""What is said of leaves, CAs and CRLs of a CA elsewhere; beside each refusal, what is taken."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.repo.conftest import load_module
from tests.support.pki import CLIENT_ONLY, Authority, Leaf, spiffe_id

_DAY = datetime.timedelta(days=1)
_IDENTITY = spiffe_id("server", "node1-5001")


_CHECK = load_module("roles/certificate/library/leaf_check.py")


@dataclass
class _Folder:
    """What a user provides, and what is wanted of it."""

    path: Path
    authority: Authority
    leaf: Leaf

    @property
    def pki(self) -> Path:
        return self.path / "pki"

    def issue(self, leaf: Leaf | None = None, authority: Authority | None = None) -> Path:
        folder = (authority or self.authority).issue(self.path / "made", leaf or self.leaf)
        return folder / "cert.pem"

    def judge(self, certificate: Path, **wanted: Any) -> str:
        """What is said of it; empty when it fits."""
        key = self.leaf.key.public_key()
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        asked: dict[str, Any] = {
            "public_keys": ["", pem],
            "keys_from": "the request",
            "identity": _IDENTITY,
            "usages": ["serverAuth", "clientAuth"],
            "hosts": ["127.0.0.1", "localhost"],
        }
        try:
            trust = _CHECK.read_trust(self.pki / "ca.pem", self.pki / "crl.pem")
            judged = _CHECK.judge_leaf(certificate, trust, _CHECK.Wanted(**(asked | wanted)))
        except _CHECK.Refused as refused:
            return str(refused)
        assert judged[1] == 1, "the second of the keys"
        return ""


@pytest.fixture
def folder(tmp_path: Path) -> _Folder:
    made = _Folder(tmp_path, Authority(), Leaf([_IDENTITY], ends=30 * _DAY))
    made.pki.mkdir()
    (made.pki / "ca.pem").write_bytes(made.authority.pem)
    assert made.judge(made.issue()) == "", "a leaf that fits"
    return made


def _change(**changes: Any) -> Callable[[Leaf], Leaf]:
    return lambda leaf: replace(leaf, **changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change(uris=[spiffe_id("client", "client1")]), "is of the identity spiffe://"),
        (_change(uris=[spiffe_id("server", "node1-5001", "other.example")]), "is of the identity"),
        (_change(uris=[]), "has 0 URIs"),
        (_change(uris=[_IDENTITY, "spiffe://other/server/x"]), "has 2 URIs"),
        (_change(hosts=["localhost"]), "lacks the name 127.0.0.1"),
        (_change(hosts=["127.0.0.1"]), "lacks the name localhost"),
        (_change(usages=CLIENT_ONLY), "lacks the extended key usage serverAuth"),
        (_change(ends=_DAY / 2), "ends within a day"),
        (_change(ends=-_DAY / 48), "has ended"),
        (_change(starts=_DAY), "is valid only from"),
        (_change(is_ca=True), "is a CA's certificate"),
        (_change(names_issuer=False), "doesn't name its CA's key"),
        (_change(key=ec.generate_private_key(ec.SECP256R1())), "is for another key than that of"),
        (
            _change(critical=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")),
            "has the critical extension 1.2.3.4",
        ),
    ],
)
def test_leaf_that_does_not_fit_is_refused(
    folder: _Folder, change: Callable[[Leaf], Leaf], said: str
) -> None:
    path = folder.issue(change(folder.leaf))
    refusal = folder.judge(path)
    assert refusal.startswith(f"{path} {said}")
    assert refusal.count("; ") == 1, "the fact, and what to do"
    assert refusal.endswith(".")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (rsa.generate_private_key(65537, 1024), "has a weak key (RSA, 1024 bits)"),  # noqa: S505
        (rsa.generate_private_key(65537, 2048), ""),
        (ec.generate_private_key(ec.SECP224R1()), "has a weak key"),
        (ec.generate_private_key(ec.SECP384R1()), ""),
    ],
)
def test_weak_keys_are_refused(
    folder: _Folder, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, said: str
) -> None:
    folder.leaf = replace(folder.leaf, key=key)
    refusal = folder.judge(folder.issue())
    assert said in refusal
    assert bool(said) == bool(refusal)


def test_leaf_of_another_ca_is_refused_until_that_is_trusted(folder: _Folder) -> None:
    other = Authority("Another CA")
    path = folder.issue(authority=other)
    assert "is not signed by a CA of" in folder.judge(path)
    assert "CN=Another CA" in folder.judge(path)
    # With the same name, too: it is the signature that counts.
    assert "is not signed by" in folder.judge(folder.issue(authority=Authority()))
    (folder.pki / "ca.pem").write_bytes(folder.authority.pem + other.pem)
    assert folder.judge(folder.issue(authority=other)) == ""


def test_more_certificates_beside_the_leaf_must_be_trusted_cas(folder: _Folder) -> None:
    path = folder.issue()
    leaf = path.read_bytes()
    path.write_bytes(leaf + folder.authority.pem)
    assert folder.judge(path) == ""
    path.write_bytes(leaf + Authority("Another CA").pem)
    assert "holds more certificates" in folder.judge(path)


def test_what_is_no_certificate_is_refused(folder: _Folder) -> None:
    path = folder.issue()
    key = path.with_name("key.pem").read_bytes()
    path.write_bytes(path.read_bytes() + key)
    assert "holds a private key, too" in folder.judge(path)
    path.write_text("hello")
    assert "is no certificate in PEM" in folder.judge(path)
    path.unlink()
    assert "can't be read" in folder.judge(path)


def test_names_may_be_wildcards_of_one_label(folder: _Folder) -> None:
    path = folder.issue(replace(folder.leaf, hosts=["*.example.net", "127.0.0.1"]))
    assert folder.judge(path, hosts=["relay.example.net"]) == ""
    assert "lacks the name a.relay.example.net" in folder.judge(path, hosts=["a.relay.example.net"])


def test_an_intermediate_ca_needs_the_one_above_it(folder: _Folder) -> None:
    root = Authority("Root CA")
    below = root.sign_authority(folder.authority)
    path = folder.issue()
    (folder.pki / "ca.pem").write_bytes(below)
    assert "but not the CA that signed it, 'CN=Root CA'" in folder.judge(path)
    (folder.pki / "ca.pem").write_bytes(below + root.pem)
    assert folder.judge(path) == ""


def test_what_is_no_ca_is_refused(folder: _Folder) -> None:
    path = folder.issue()
    (folder.pki / "ca.pem").write_bytes(folder.authority.pem + path.read_bytes())
    assert "which is no CA" in folder.judge(path)
    (folder.pki / "ca.pem").unlink()
    assert "can't be read" in folder.judge(path)


def test_crls_count_when_they_are_there(folder: _Folder) -> None:
    path = folder.issue()
    crl = folder.pki / "crl.pem"
    crl.write_bytes(folder.authority.make_crl())
    assert folder.judge(path) == ""
    crl.write_bytes(folder.authority.make_crl(path.parent))
    assert "is revoked by the CRL" in folder.judge(path)
    crl.write_bytes(folder.authority.make_crl(ends=-_DAY / 48))
    assert f"{crl} is overdue" in folder.judge(path)
    crl.write_bytes(Authority().make_crl())
    assert "has signed; put the CRLs of those CAs there" in folder.judge(path)
    delta = x509.DeltaCRLIndicator(1)
    crl.write_bytes(folder.authority.make_crl(critical=delta))
    assert "with a critical extension" in folder.judge(path)
    crl.write_text("none")
    assert "holds no CRL in PEM" in folder.judge(path)


def test_with_crls_every_ca_of_a_leaf_needs_one(folder: _Folder) -> None:
    other = Authority("Another CA")
    (folder.pki / "ca.pem").write_bytes(folder.authority.pem + other.pem)
    path = folder.issue()
    crl = folder.pki / "crl.pem"
    crl.write_bytes(other.make_crl())
    assert "of which there is no CRL" in folder.judge(path)
    crl.write_bytes(other.make_crl() + folder.authority.make_crl())
    assert folder.judge(path) == ""
