"""A certificate authority that lives as long as a test, and leaves that are wrong on demand."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "sealrelay.internal"
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
CLIENT_ONLY = (ExtendedKeyUsageOID.CLIENT_AUTH,)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_HOUR = datetime.timedelta(hours=1)


def spiffe_id(role: str, name: str, trust_domain: str = TRUST_DOMAIN) -> str:
    return f"spiffe://{trust_domain}/{role}/{name}"


@dataclass
class Leaf:
    """What a leaf says; the defaults are right for a server or coordinator on loopback."""

    uris: Sequence[str]
    hosts: Sequence[str] = ("127.0.0.1", "localhost")
    usages: Sequence[x509.ObjectIdentifier] = BOTH
    starts: datetime.timedelta = -_HOUR
    ends: datetime.timedelta = _HOUR
    is_ca: bool = False
    usage: x509.KeyUsage | None = None
    """By default what suits a leaf, or a CA."""
    other_names: Sequence[x509.GeneralName] = ()
    names_issuer: bool = True
    """By the identifier of its key, as RFC 5280 has it."""
    critical: x509.ExtensionType | None = None
    """Another extension."""
    key: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))


@dataclass
class Authority:
    """A CA as the `ca` role makes it: P-256, pathlen 0, nothing but certificate and CRL signing."""

    name: str = "Test CA"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    signs_crls: bool = True

    def __post_init__(self) -> None:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        builder = _builder(subject, subject, self.key.public_key(), -_HOUR, 24 * _HOUR)
        self.certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(certificates=True, crls=self.signs_crls), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def sign_authority(self, other: Authority) -> bytes:
        """A certificate (PEM) for another authority below this one, which pathlen:0 forbids."""
        builder = _builder(
            other.certificate.subject,
            self.certificate.subject,
            other.key.public_key(),
            -_HOUR,
            _HOUR,
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(certificates=True), critical=True)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM)

    def make_crl(
        self,
        *revoked: Path,
        starts: datetime.timedelta = -_HOUR,
        ends: datetime.timedelta = _HOUR,
        critical: x509.ExtensionType | None = None,
    ) -> bytes:
        """A CRL (PEM) that revokes the leaves in these folders."""
        now = datetime.datetime.now(datetime.timezone.utc)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now + starts)
            .next_update(now + ends)
            .add_extension(issuer, critical=False)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        if critical is not None:
            builder = builder.add_extension(critical, critical=True)
        for folder in revoked:
            certificate = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(now)
                .build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(self, folder: Path, leaf: Leaf) -> Path:
        """Write cert.pem, key.pem and ca.pem of a new leaf into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        key = leaf.key
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in leaf.uris]
        for host in leaf.hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        names.extend(leaf.other_names)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        builder = _builder(
            subject, self.certificate.subject, key.public_key(), leaf.starts, leaf.ends
        )
        builder = (
            builder.add_extension(
                x509.BasicConstraints(ca=leaf.is_ca, path_length=None), critical=True
            )
            .add_extension(leaf.usage or _key_usage(certificates=leaf.is_ca), critical=True)
            .add_extension(x509.ExtendedKeyUsage(leaf.usages), critical=False)
        )
        if leaf.names_issuer:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            builder = builder.add_extension(issuer, critical=False)
        if leaf.critical is not None:
            builder = builder.add_extension(leaf.critical, critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (folder / "key.pem").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        (folder / "key.pem").chmod(0o600)
        (folder / "ca.pem").write_bytes(self.pem)
        return folder

    def sign_request(
        self, request: bytes, uris: Sequence[str] | None = None, days: float = 90
    ) -> bytes:
        """A leaf (PEM) as a signing request (PEM) asks for it, or with other URIs."""
        asked = x509.load_pem_x509_csr(request)
        assert asked.is_signature_valid
        key = asked.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        ends = datetime.timedelta(days=days)
        builder = _builder(asked.subject, self.certificate.subject, key, -_HOUR, ends)
        for extension in asked.extensions:
            value = extension.value
            if isinstance(value, x509.SubjectKeyIdentifier):
                continue
            if isinstance(value, x509.SubjectAlternativeName) and uris is not None:
                others = [n for n in value if not isinstance(n, x509.UniformResourceIdentifier)]
                value = x509.SubjectAlternativeName(
                    [*map(x509.UniformResourceIdentifier, uris), *others]
                )
            builder = builder.add_extension(value, extension.critical)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    starts: datetime.timedelta,
    ends: datetime.timedelta,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, certificates: bool, crls: bool | None = None) -> x509.KeyUsage:
    """``crls``: as ``certificates``, unless it is said."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates if crls is None else crls,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
