"""Which leaves count just now: whose CA signed them, their time, and whether they are revoked.

TLS judges a leaf once, in the handshake. Connections are kept open, while CRLs and CAs change, so
this judges it again afterwards; the facts are the same, CA certificates and CRLs (RFC 5280).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from sealrelay.identity import IdentityRefused, LeafRefused

_CRL = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)

E = TypeVar("E", bound=x509.ExtensionType)

_AHEAD = 2.0
"""Seconds before a CRL runs out at which TLS stops looking at it: the switch must not come late."""

Issuer = tuple[bytes, bytes]
"""A CA as its leaves name it: its subject (DER), and its key's identifier."""


class CaRefused(ValueError):
    """CA certificates that cannot be used."""


class CrlRefused(ValueError):
    """CRLs that cannot be used."""


@dataclass(frozen=True)
class Leaf:
    """What of a leaf decides whether it counts. Times: seconds since the epoch."""

    issuer: Issuer
    serial: int
    starts: float
    ends: float


@lru_cache(maxsize=4096)
def read_leaf(der: bytes) -> Leaf:
    """Read a certificate in DER. Raises IdentityRefused when that cannot be done."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = _find(certificate, x509.AuthorityKeyIdentifier)
    except (
        ValueError,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ):
        raise IdentityRefused("the certificate cannot be read") from None
    return Leaf(
        (certificate.issuer.public_bytes(), (key and key.key_identifier) or b""),
        certificate.serial_number,
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


@dataclass(frozen=True)
class _Crl:
    pem: bytes
    serials: frozenset[int]
    starts: float
    ends: float


class Trust:
    """The CAs that are trusted and the CRLs they have made, as read at one time."""

    def __init__(self, ca: bytes, crl: bytes | None, *, refuse_after_crl: bool = False) -> None:
        """``ca`` and ``crl``: one or several in PEM; without ``crl``, nothing is revoked.

        ``refuse_after_crl``: once a CRL's next update is due, its CA's leaves count no more, which
        otherwise the last known CRL goes on deciding. Raises CaRefused or CrlRefused.
        """
        try:
            self._cas = x509.load_pem_x509_certificates(ca)
        except ValueError:
            raise CaRefused("not a certificate in PEM") from None
        self._trusted = {_name_ca(certificate): certificate for certificate in self._cas}
        self._refuse_after_crl = refuse_after_crl
        self._crls: dict[Issuer, list[_Crl]] | None = None
        if crl is not None:
            self._crls = {}
            for pem in _CRL.findall(crl):
                issuer, read = self._read_crl(pem)
                self._crls.setdefault(issuer, []).append(read)
            if not self._crls:
                raise CrlRefused("not a CRL in PEM")

    @property
    def pem(self) -> bytes:
        """The CAs and CRLs."""
        cas = (certificate.public_bytes(Encoding.PEM) for certificate in self._cas)
        return b"".join((*cas, *(crl.pem + b"\n" for crl in self._all_crls())))

    @property
    def expires(self) -> float:
        """When the first of the CAs expires, in seconds since the epoch."""
        return min(certificate.not_valid_after_utc.timestamp() for certificate in self._cas)

    @property
    def next_update(self) -> float | None:
        """When the next CRL is due, in seconds since the epoch; None without CRLs."""
        if self._crls is None:
            return None
        return min(max(crl.ends for crl in crls) for crls in self._crls.values())

    def count_overdue(self, now: float) -> int:
        """Of how many CAs the next CRL should have come by ``now``, in seconds since the epoch."""
        return sum(now > max(crl.ends for crl in crls) for crls in (self._crls or {}).values())

    def lets_tls_check_crls(self, now: float) -> bool:
        """Whether TLS may look at the CRLs as well, at ``now`` in seconds since the epoch.

        It refuses everybody as soon as one is out of its time.
        """
        if self._crls is None or self._refuse_after_crl:
            return self._crls is not None
        return all(
            any(crl.starts <= now < crl.ends - _AHEAD for crl in crls)
            for crls in self._crls.values()
        )

    def check(self, leaf: Leaf, now: float) -> None:
        """Raises LeafRefused unless the leaf counts at ``now``, in seconds since the epoch.

        Its signature is TLS's to check; see ``check_signed``.
        """
        if leaf.issuer not in self._trusted:
            raise LeafRefused("it is of a CA that is not trusted")
        if now > leaf.ends:
            raise LeafRefused("it has expired")
        if now < leaf.starts:
            raise LeafRefused("it is not valid yet")
        if self._crls is None:
            return
        crls = self._crls.get(leaf.issuer)
        if crls is None:
            raise LeafRefused("there is no CRL of its CA")
        if self._refuse_after_crl and now > max(crl.ends for crl in crls):
            raise LeafRefused("the CRL of its CA has run out")
        if any(leaf.serial in crl.serials for crl in crls):
            raise LeafRefused("it is revoked")

    def check_signed(self, der: bytes, now: float) -> None:
        """As ``check``, for a certificate (DER) that TLS has not seen. Raises IdentityRefused."""
        leaf = read_leaf(der)
        self.check(leaf, now)
        if not _is_signed(der, self._trusted[leaf.issuer]):
            raise LeafRefused("it is not signed by its CA")

    def _all_crls(self) -> Iterable[_Crl]:
        return (crl for crls in (self._crls or {}).values() for crl in crls)

    def _read_crl(self, pem: bytes) -> tuple[Issuer, _Crl]:
        try:
            crl = x509.load_pem_x509_crl(pem)
            critical = [extension.oid for extension in crl.extensions if extension.critical]
            serials = frozenset(entry.serial_number for entry in crl)
            starts, ends = crl.last_update_utc, crl.next_update_utc
        except (ValueError, x509.DuplicateExtension):
            raise CrlRefused("the CRL cannot be read") from None
        if critical:
            # a part of a CRL, or one that speaks for other CAs (RFC 5280 §5.2.4, §5.2.5)
            raise CrlRefused(f"the CRL has a critical extension, {critical[0].dotted_string}")
        if ends is None:
            raise CrlRefused("the CRL does not say when the next one is due")
        for issuer, ca in self._trusted.items():
            if ca.subject == crl.issuer and _has_signed(ca, crl):
                return issuer, _Crl(pem, serials, starts.timestamp(), ends.timestamp())
        raise CrlRefused("the CRL is not signed by a CA that is trusted")


def _name_ca(certificate: x509.Certificate) -> Issuer:
    key = _find(certificate, x509.SubjectKeyIdentifier)
    return certificate.subject.public_bytes(), key.digest if key else b""


def _find(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _has_signed(ca: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    usage = _find(ca, x509.KeyUsage)
    if usage is not None and not usage.crl_sign:
        return False
    try:
        return crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type] # or TypeError
    except TypeError:
        return False


@lru_cache(maxsize=4096)
def _is_signed(der: bytes, ca: x509.Certificate) -> bool:
    try:
        x509.load_der_x509_certificate(der).verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
