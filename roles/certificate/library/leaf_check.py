#!/usr/bin/python
"""Ansible module: judge what a CA elsewhere has made, before any host gets it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: leaf_check
short_description: Judge CA certificates, CRLs and a leaf that a CA elsewhere has made
description:
  - Runs on the control node, and reads nothing secret.
  - Does not fail for what doesn't fit but says so, that all that is wrong can be told at once.
options:
  ca:
    description: File with the trusted CA certificates (PEM).
    type: path
    required: true
  crl:
    description: File with their CRLs (PEM). One that isn't there means that nothing is revoked.
    type: path
    required: true
  certificate:
    description: File with the leaf (PEM). Without it, only the CAs and CRLs are judged.
    type: path
  public_keys:
    description: The keys (PEM) that the leaf may be for; empty ones count as none.
    type: list
    elements: str
    default: []
  keys_from:
    description: Where these keys come from, for the message.
    type: str
    default: its key
  identity:
    description: The one URI that the leaf must have.
    type: str
  usages:
    description: Extended key usages that it must have.
    type: list
    elements: str
    choices: [clientAuth, serverAuth]
    default: []
  hosts:
    description: Names and addresses by which peers reach its owner.
    type: list
    elements: str
    default: []
  renew_at:
    description: Share of its life after which a leaf is due for its successor.
    type: float
    default: 0.667
author:
  - the sealrelay authors
"""

RETURN = r"""
refusal:
  description: What doesn't fit, and what to do, as one sentence; empty when everything fits.
  type: str
  returned: always
key:
  description: Which of the public keys the leaf is for, from 0.
  type: int
  returned: when a leaf fits
leaf:
  description: The leaf alone (PEM).
  type: str
  returned: when a leaf fits
ends:
  description: Until when it is valid (UTC).
  type: str
  returned: when a leaf fits
due:
  description: Whether it should have a successor by now.
  type: bool
  returned: when a leaf fits
"""

import datetime
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

USAGES = {
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
}
CRL = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
SHORTEST = datetime.timedelta(days=1)  # what is deployed must not end before anybody looks again
RSA_BITS, EC_BITS = 2048, 256
WEAK_HASHES = ("md5", "sha1")
UNREADABLE = (
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class Refused(Exception):
    """What doesn't fit, as one sentence."""

    def __init__(self, path: Path, fact: str, remedy: str) -> None:
        super().__init__(f"{path} {fact}; {remedy}.")


@dataclass
class Trust:
    """The CAs, and what they have revoked: serial numbers for each place in ``cas``."""

    path: Path
    cas: list[x509.Certificate]
    has_crl: bool = False
    revoked: dict[int, set[int]] = field(default_factory=dict)


@dataclass
class Wanted:
    """What a leaf must be."""

    public_keys: list[str]
    keys_from: str
    identity: str
    usages: list[str]
    hosts: list[str]


def now() -> datetime.datetime:
    """Return the time."""
    return datetime.datetime.now(datetime.timezone.utc)


def tell_time(moment: datetime.datetime) -> str:
    """Return a time as people read it."""
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def find(certificate: x509.Certificate, kind: type) -> x509.Extension | None:
    """Return an extension, None when there is none of this kind."""
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def read_certificates(path: Path, remedy: str) -> list[x509.Certificate]:
    """Return the certificates of a file, which are readable to their last extension."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Refused(path, f"can't be read ({error.strerror})", remedy) from None
    if b"PRIVATE KEY-----" in text:
        raise Refused(path, "holds a private key, too", "leave certificates alone in it")
    try:
        certificates = x509.load_pem_x509_certificates(text)
        for certificate in certificates:
            for extension in certificate.extensions:
                if extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
                    fact = f"has the critical extension {extension.oid.dotted_string}"
                    raise Refused(path, f"{fact}, which TLS doesn't know", "have it left out")
    except UNREADABLE:
        raise Refused(path, "is no certificate in PEM", remedy) from None
    return certificates


def find_weakness(certificate: x509.Certificate) -> str:
    """Return what of a certificate's key or signature is too weak; empty when nothing is."""
    try:
        key = certificate.public_key()
        used = certificate.signature_hash_algorithm
    except (UnsupportedAlgorithm, ValueError):
        return "has a key or signature of an unknown kind"
    if used is not None and used.name in WEAK_HASHES:
        return f"is signed with {used.name.upper()}, which can be forged"
    if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return ""
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS:
        return ""
    if isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= EC_BITS:
        return ""
    kind = type(key).__name__.strip("_").replace("PublicKey", "")
    return f"has a weak key ({kind}, {getattr(key, 'key_size', '?')} bits)"


def is_signed(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether ``ca`` has signed the certificate."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def check_ca(path: Path, ca: x509.Certificate, cas: list[x509.Certificate]) -> None:
    """Check that TLS, in OpenSSL's strict mode, takes a CA's certificate."""
    name = ca.subject.rfc4514_string()
    another = "put another certificate of this CA there"
    constraints, usage = find(ca, x509.BasicConstraints), find(ca, x509.KeyUsage)
    if constraints is None or not constraints.value.ca:
        raise Refused(path, f"holds '{name}', which is no CA", "leave CA certificates alone in it")
    if not constraints.critical or usage is None or not usage.value.key_cert_sign:
        fact = f"holds '{name}' without critical basic constraints and a key usage for signing"
        raise Refused(path, fact, another)
    if find(ca, x509.SubjectKeyIdentifier) is None:
        raise Refused(path, f"holds '{name}', which has no key identifier", another)
    if weakness := find_weakness(ca):
        raise Refused(path, f"holds '{name}', which {weakness}", another)
    if not ca.not_valid_before_utc <= now() < ca.not_valid_after_utc:
        starts, ends = tell_time(ca.not_valid_before_utc), tell_time(ca.not_valid_after_utc)
        fact = f"holds '{name}', which is valid from {starts} to {ends}"
        raise Refused(path, fact, "take it out, or put its successor there")
    if not any(is_signed(ca, other) for other in cas):
        fact = f"holds '{name}', but not the CA that signed it, '{ca.issuer.rfc4514_string()}'"
        raise Refused(path, fact, "add that one, up to the one that signed itself")


def read_trust(path: Path, crl_path: Path) -> Trust:
    """Read the CAs and their CRLs. Raises Refused."""
    cas = read_certificates(path, "put the certificates of your CA there, in PEM")
    for ca in cas:
        check_ca(path, ca, cas)
    trust = Trust(path, cas, has_crl=crl_path.is_file())
    if trust.has_crl:
        read_crls(crl_path, trust)
    return trust


def read_crls(path: Path, trust: Trust) -> None:
    """Add what is revoked to ``trust``. Raises Refused, also for CRLs that are overdue."""
    ends: dict[int, datetime.datetime] = {}
    another = "put the latest CRL of your CA there, in PEM"
    found = CRL.findall(path.read_bytes())
    if not found:
        raise Refused(path, "holds no CRL in PEM", another)
    for pem in found:
        try:
            crl = x509.load_pem_x509_crl(pem)
            critical = [extension.oid for extension in crl.extensions if extension.critical]
            serials = {entry.serial_number for entry in crl}
        except UNREADABLE:
            raise Refused(path, "holds a CRL that can't be read", another) from None
        signer = find_crl_signer(crl, trust.cas)
        if signer is None:
            fact = f"holds a CRL of '{crl.issuer.rfc4514_string()}', which no CA of {trust.path}"
            raise Refused(path, f"{fact} has signed", "put the CRLs of those CAs there")
        if critical:
            fact = f"holds a CRL with a critical extension ({critical[0].dotted_string})"
            raise Refused(path, fact, "put a complete CRL there, for all leaves of the CA")
        if crl.next_update_utc is None or crl.last_update_utc > now():
            fact = "holds a CRL that is not valid yet, or doesn't say when the next one is due"
            raise Refused(path, fact, another)
        ends[signer] = max(ends.get(signer, crl.next_update_utc), crl.next_update_utc)
        trust.revoked.setdefault(signer, set()).update(serials)
    for signer, end in ends.items():
        if end <= now():
            name = trust.cas[signer].subject.rfc4514_string()
            fact = f"is overdue: the next CRL of '{name}' should be there since {tell_time(end)}"
            raise Refused(path, fact, another)


def find_crl_signer(crl: x509.CertificateRevocationList, cas: list[x509.Certificate]) -> int | None:
    """Return the place of the CA that has signed a CRL and may sign CRLs."""
    for place, ca in enumerate(cas):
        usage = find(ca, x509.KeyUsage)
        try:
            if (
                ca.subject == crl.issuer
                and usage is not None
                and usage.value.crl_sign
                and crl.is_signature_valid(ca.public_key())
            ):
                return place
        except (TypeError, UnsupportedAlgorithm):
            continue
    return None


def judge_leaf(path: Path, trust: Trust, wanted: Wanted) -> tuple[x509.Certificate, int]:
    """Return the leaf of a file, and which of the keys it is for. Raises Refused."""
    leaf, *others = read_certificates(path, "put the certificate there, in PEM")
    again = "have it signed anew, from its request if there is one"
    if any(other not in trust.cas for other in others):
        fact = f"holds more certificates, of which {trust.path} doesn't have every one"
        raise Refused(path, fact, "leave only the leaf in it, and put CAs that you trust there")
    check_signature(path, leaf, trust, again)
    key = find_key(path, leaf, wanted)
    if weakness := find_weakness(leaf):
        raise Refused(path, weakness, f"use RSA from {RSA_BITS} bits up, or P-256 or larger")
    if leaf.not_valid_before_utc > now():
        fact = f"is valid only from {tell_time(leaf.not_valid_before_utc)}"
        raise Refused(path, fact, "wait until then, or have it signed anew")
    if leaf.not_valid_after_utc < now() + SHORTEST:
        ends = tell_time(leaf.not_valid_after_utc)
        has = "has ended" if leaf.not_valid_after_utc < now() else "ends within a day"
        raise Refused(path, f"{has} ({ends})", "put its successor there")
    check_extensions(path, leaf, wanted, again)
    check_names(path, leaf, wanted, again)
    return leaf, key


def check_signature(path: Path, leaf: x509.Certificate, trust: Trust, again: str) -> None:
    """Check that a CA has signed the leaf, in a way that TLS can follow, and not revoked it."""
    signers = [place for place, ca in enumerate(trust.cas) if is_signed(leaf, ca)]
    if not signers:
        fact = f"is not signed by a CA of {trust.path} but by '{leaf.issuer.rfc4514_string()}'"
        raise Refused(path, fact, "have it signed by one of them, or put that CA there")
    own = find(leaf, x509.AuthorityKeyIdentifier)
    identifiers = [find(trust.cas[place], x509.SubjectKeyIdentifier) for place in signers]
    if own is None or own.value.key_identifier not in [
        identifier.value.digest for identifier in identifiers if identifier
    ]:
        fact = "doesn't name its CA's key (authority key identifier)"
        raise Refused(path, fact, again)
    if not trust.has_crl:
        return
    if not any(place in trust.revoked for place in signers):
        fact = f"is of a CA, '{leaf.issuer.rfc4514_string()}', of which there is no CRL"
        raise Refused(path, fact, "add it to crl.pem, which has those of other CAs")
    if any(leaf.serial_number in trust.revoked.get(place, ()) for place in signers):
        raise Refused(path, "is revoked by the CRL of its CA", "have a new one signed")


def find_key(path: Path, leaf: x509.Certificate, wanted: Wanted) -> int:
    """Return which of the keys the leaf is for."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        own = leaf.public_key().public_bytes(*form)
    except (UnsupportedAlgorithm, ValueError):
        raise Refused(path, "has a key of an unknown kind", "use another") from None
    for place, pem in enumerate(wanted.public_keys):
        if pem and load_pem_public_key(pem.encode()).public_bytes(*form) == own:
            return place
    fact = f"is for another key than that of {wanted.keys_from}"
    raise Refused(path, fact, "put the one there that was made for this key")


def check_extensions(path: Path, leaf: x509.Certificate, wanted: Wanted, again: str) -> None:
    """Check what the leaf may be used for."""
    constraints, usage = find(leaf, x509.BasicConstraints), find(leaf, x509.KeyUsage)
    if constraints is not None and constraints.value.ca:
        raise Refused(path, "is a CA's certificate", "have a leaf signed in its place")
    if usage is not None and (not usage.value.digital_signature or usage.value.key_cert_sign):
        fact = "has a key usage without digital signature, or with certificate signing"
        raise Refused(path, fact, again)
    extended = find(leaf, x509.ExtendedKeyUsage)
    has = list(extended.value) if extended else []
    if missing := [name for name in wanted.usages if USAGES[name] not in has]:
        fact = f"lacks the extended key usage {' and '.join(missing)}"
        raise Refused(path, fact, f"{again}, with {' and '.join(wanted.usages)}")


def check_names(path: Path, leaf: x509.Certificate, wanted: Wanted, again: str) -> None:
    """Check who the leaf says that its owner is, and where to find it."""
    extension = find(leaf, x509.SubjectAlternativeName)
    names = extension.value if extension else x509.SubjectAlternativeName([])
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        fact = f"has {len(uris)} URIs among its names instead of the one {wanted.identity}"
        raise Refused(path, fact, again)
    if uris[0] != wanted.identity:
        fact = f"is of the identity {uris[0]} instead of {wanted.identity}"
        raise Refused(path, fact, "have the right one signed, or correct the file's name")
    if not list(leaf.subject) and not extension.critical:
        fact = "has no subject, and its names (SAN) are not critical"
        raise Refused(path, fact, again)
    hosts = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    addresses = set(names.get_values_for_type(x509.IPAddress))
    for host in wanted.hosts:
        try:
            reached = ipaddress.ip_address(host) in addresses
        except ValueError:
            reached = host.lower() in hosts or f"*.{host.lower().partition('.')[2]}" in hosts
        if not reached:
            fact = f"lacks the name {host}, by which peers reach it"
            raise Refused(path, fact, f"{again}, with every name that is asked for")


def main() -> None:
    """Judge what the arguments name, and say what doesn't fit."""
    module = AnsibleModule(
        argument_spec={
            "ca": {"type": "path", "required": True},
            "crl": {"type": "path", "required": True},
            "certificate": {"type": "path"},
            "public_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "keys_from": {"type": "str", "default": "its key", "no_log": False},
            "identity": {"type": "str"},
            "usages": {
                "type": "list",
                "elements": "str",
                "choices": ["clientAuth", "serverAuth"],
                "default": [],
            },
            "hosts": {"type": "list", "elements": "str", "default": []},
            "renew_at": {"type": "float", "default": 0.667},
        },
        required_by={"certificate": ["identity"]},
        supports_check_mode=True,
    )
    asked = module.params
    try:
        trust = read_trust(Path(asked["ca"]), Path(asked["crl"]))
        if asked["certificate"] is None:
            module.exit_json(changed=False, refusal="")
        wanted = Wanted(
            *(asked[name] for name in ("public_keys", "keys_from", "identity", "usages", "hosts"))
        )
        leaf, key = judge_leaf(Path(asked["certificate"]), trust, wanted)
    except Refused as refused:
        module.exit_json(changed=False, refusal=str(refused))
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    module.exit_json(
        changed=False,
        refusal="",
        key=key,
        leaf=leaf.public_bytes(Encoding.PEM).decode(),
        ends=tell_time(leaf.not_valid_after_utc),
        due=now() > leaf.not_valid_before_utc + asked["renew_at"] * life,
    )


if __name__ == "__main__":
    main()
