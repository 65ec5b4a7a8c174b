"""Assertions on every certificate of a deployed node; the one place that says how they must be."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.node import Node

_CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
_SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
_LEAVES = {
    "/etc/sealrelay/clients/client1": ("client/client1", {_CLIENT_AUTH}),
    "/etc/sealrelay/clients/client2": ("client/client2", {_CLIENT_AUTH}),
    "/etc/sealrelay/operator": ("operator/node1", {_CLIENT_AUTH}),
    "/etc/sealrelay/coordinator": ("coordinator/node1", {_SERVER_AUTH, _CLIENT_AUTH}),
    "/etc/sealrelay/servers/5001": ("server/node1-5001", {_SERVER_AUTH, _CLIENT_AUTH}),
    "/etc/sealrelay/servers/5002": ("server/node1-5002", {_SERVER_AUTH, _CLIENT_AUTH}),
}
_NO_KEY_USAGE = {
    "digital_signature": False,
    "content_commitment": False,
    "key_encipherment": False,
    "data_encipherment": False,
    "key_agreement": False,
    "key_cert_sign": False,
    "crl_sign": False,
    "encipher_only": False,
    "decipher_only": False,
}


def _load(node: Node, path: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(node.read(path).encode())


def _days_left(certificate: x509.Certificate) -> float:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (certificate.not_valid_after_utc - now) / datetime.timedelta(days=1)


@pytest.mark.parametrize(("folder", "expected"), _LEAVES.items())
def test_leaf(node: Node, folder: str, expected: tuple[str, set[x509.ObjectIdentifier]]) -> None:
    identity, usages = expected
    leaf = _load(node, f"{folder}/cert.pem")
    ca = _load(node, f"{folder}/ca.pem")
    extensions = leaf.extensions

    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://sealrelay.internal/{identity}"
    ]
    hosts = names.get_values_for_type(x509.DNSName)
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    if identity.startswith(("client/", "operator/")):
        assert not hosts
        assert not addresses
    else:
        assert {"node1", "localhost"} <= set(hosts)
        assert {"127.0.0.1", node.run("hostname", "-I").split()[0]} <= addresses

    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=False, path_length=None)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value == x509.KeyUsage(**{**_NO_KEY_USAGE, "digital_signature": True})
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
    own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert own.digest == x509.SubjectKeyIdentifier.from_public_key(leaf.public_key()).digest
    issuer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    ca_identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert issuer.key_identifier == ca_identifier.digest

    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert 30 < _days_left(leaf) <= 366
    leaf.verify_directly_issued_by(ca)


def test_every_leaf_has_a_key_of_its_own(node: Node) -> None:
    identifiers = {
        x509.SubjectKeyIdentifier.from_public_key(_load(node, f"{folder}/cert.pem").public_key())
        for folder in _LEAVES
    }
    assert len(identifiers) == len(_LEAVES)


def test_ca_can_sign_leaves_and_nothing_else(node: Node) -> None:
    texts = {node.read(f"{folder}/ca.pem") for folder in _LEAVES}
    assert len(texts) == 1, "one CA for all"
    ca = x509.load_pem_x509_certificate(texts.pop().encode())
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value == x509.KeyUsage(
        **{**_NO_KEY_USAGE, "key_cert_sign": True, "crl_sign": True}
    )
    with pytest.raises(x509.ExtensionNotFound):
        ca.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert _days_left(ca) > 365
    key = ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    # Not more: each side of a handshake verifies with it twice, and all else has this strength.
    assert key.curve.name == "secp256r1"
    ca.verify_directly_issued_by(ca)
