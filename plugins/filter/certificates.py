"""Filters that judge certificates and certificate authorities on the control node."""

from __future__ import annotations

import datetime
import glob
import ipaddress
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_USAGES = {
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
}
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_SECRET, _PUBLIC, _FOLDER = 0o600, 0o644, 0o700


def list_sans(hosts: Iterable[str], identity: str) -> list[str]:
    """Return the subject alternative names of a certificate, such as ``DNS:node1``.

    Exactly one URI: it is the identity. Names and addresses only say where a peer may find it, so
    what nobody connects to is left out: 0.0.0.0, and what no host is called. A number is a name.
    """
    names, addresses = set(), set()
    for host in map(str, hosts):
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            if _HOST_NAME.fullmatch(host):
                names.add(host)
        else:
            if not address.is_unspecified:
                addresses.add(str(address))
    return [
        f"URI:{identity}",
        *(f"DNS:{name}" for name in sorted(names)),
        *(f"IP:{address}" for address in sorted(addresses)),
    ]


def judge_leaves(
    dirs: Mapping[str, str],
    found: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Say what each certificate of one role needs.

    ``dirs`` are the folders by name; ``found`` says of each what look_at_leaves.py prints.
    ``wanted`` has ``role``, ``trust_domain``, ``hosts``, ``usages``, ``ca`` (PEM text of the CA
    that signs), ``revoked_serials`` (hexadecimal digits), ``renew_at`` (share of its life after
    which a certificate is replaced) and ``rotate`` (names of those that are replaced anyway).

    Returns for each its role, name, dir, sans and usages; ``due``, the reason to sign a new one
    ("" for none); ``new_key``, whether that comes with a new key, beside the one in use;
    ``make_key``, whether there is no usable key; ``certificate`` and ``serial``, those of now.
    """
    authority = _read_certificate(wanted["ca"])
    if wanted["ca"] and authority is None:
        raise AnsibleFilterError("the CA's certificate can't be read")
    leaves = []
    for name, folder in dirs.items():
        identity = f"spiffe://{wanted['trust_domain']}/{wanted['role']}/{name}"
        leaf = {
            "identity": f"{wanted['role']}/{name}",
            "replaced": False,
            "role": wanted["role"],
            "name": str(name),
            "dir": folder,
            "sans": list_sans(wanted["hosts"], identity),
            "usages": list(wanted["usages"]),
        }
        leaves.append({**leaf, **_judge(leaf, found.get(folder, {}), authority, wanted)})
    return leaves


def add_signed(
    leaves: Iterable[Mapping[str, Any]], signed: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the leaves with what was signed for them, as a loop over requests registers it."""
    new = {result["item"]["item"]["name"]: result["certificate"] for result in signed}
    return [
        {
            **leaf,
            "replaced": bool(leaf["due"]),
            **(
                {"certificate": pem, "serial": _serial_of(pem)}
                if (pem := new.get(leaf["name"]))
                else {}
            ),
        }
        for leaf in leaves
    ]


def pick_judge(given: Iterable[Mapping[str, Any]], release: str, pretend: bool) -> list[str]:
    """Return the command that judges a settings file, with ``%s`` for its path.

    Nothing in a dry run in which certificates would be replaced: the settings have to fit to those.
    ``given`` are the host's leaves, as ``add_signed`` returns them; ``release`` is the folder of
    the release that is installed.
    """
    if pretend and any(leaf["replaced"] for leaf in given):
        return []
    return [f"{release}/bin/sealrelay", "check-config", "%s"]


def find_revoked_identities(
    revoked: Iterable[Mapping[str, str]], issued: Iterable[str]
) -> list[str]:
    """Return the identities (role/name) of which no certificate is left that is not revoked.

    ``issued`` are the paths of all that were signed: ROLE.NAME.SERIAL.pem.
    """
    entries = list(revoked)
    serials = {entry["serial"] for entry in entries}
    good = set()
    for path in issued:
        if found := re.fullmatch(r"([a-z]+)[.](.+)[.]([0-9a-f]+)[.]pem", Path(path).name):
            role, name, serial = found.groups()
            if serial not in serials:
                good.add(f"{role}/{name}")
    return sorted({entry["identity"] for entry in entries} - good)


def find_unrecorded(leaves: Iterable[Mapping[str, Any]], folder: str) -> list[Mapping[str, Any]]:
    """Return the leaves of which the control node has no copy in ``folder``."""

    def is_recorded(leaf: Mapping[str, Any]) -> bool:
        path = Path(folder, f"{leaf['role']}.{leaf['name']}.{leaf['serial']}.pem")
        return path.is_file() and path.read_text() == leaf["certificate"]

    return [leaf for leaf in leaves if leaf["serial"] and not is_recorded(leaf)]


def list_puts(
    leaves: Iterable[Mapping[str, Any]],
    found: Mapping[str, Mapping[str, Any]],
    trust_files: Mapping[str, str],
    attributes: Mapping[str, str],
    pretend: bool,
) -> list[dict[str, Any]]:
    """Return what put_files.py has to do; nothing for folders in which all is as wanted.

    ``found`` is what look_at_leaves.py prints; ``trust_files`` are the texts of ca.pem and crl.pem;
    ``attributes`` are owner, group and key_mode.
    """
    puts = []
    owner = {"owner": attributes["owner"], "group": attributes["group"]}
    for leaf in leaves:
        texts = {
            "cert.pem": "to be signed\n" if leaf["due"] and pretend else leaf["certificate"],
            **trust_files,
        }
        wanted = {name: {"text": text, **owner, "mode": "0644"} for name, text in texts.items()}
        wanted["key.pem"] = {**owner, "mode": attributes["key_mode"]}
        there = found.get(leaf["dir"], {}).get("files", {})
        if not leaf["due"] and all(there.get(name) == file for name, file in wanted.items()):
            continue
        put = {
            "folders": [glob.escape(leaf["dir"])],
            # With its leaf, or it stays where it is.
            "rename": {"key.pem.new": "key.pem"} if leaf["new_key"] else {},
            "files": texts,
            "modes": {"key.pem": attributes["key_mode"]},
            "pretend": pretend,
        }
        puts.append({**put, **owner})
    return puts


def _judge(
    leaf: Mapping[str, Any],
    found: Mapping[str, Any],
    authority: x509.Certificate | None,
    wanted: Mapping[str, Any],
) -> dict[str, Any]:
    pem, public = found.get("files", {}).get("cert.pem", {}).get("text"), found.get("public_key")
    certificate = _read_certificate(pem)
    serial = _serial_of(pem)
    verdict = {
        "certificate": pem or "",
        "serial": serial,
        "make_key": not public,
        "new_key": False,
    }
    if certificate is not None and public:
        if leaf["name"] in wanted["rotate"]:
            return {**verdict, "due": "asked for", "new_key": True}
        if _is_old(certificate, float(wanted["renew_at"])):
            return {**verdict, "due": "most of its life is over", "new_key": True}
        if serial in wanted["revoked_serials"]:
            return {**verdict, "due": "revoked", "new_key": True}
    return {**verdict, "due": _find_fault(leaf, certificate, public, authority)}


def _find_fault(
    leaf: Mapping[str, Any],
    certificate: x509.Certificate | None,
    public: str | None,
    authority: x509.Certificate | None,
) -> str:
    if not public:
        return "it has no key"
    if certificate is None:
        return "there is none"
    if certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) != (
        public.encode()
    ):
        return "it is for another key"
    if authority is None or not _is_issued_by(certificate, authority):
        return "it is of another CA"
    if certificate.subject != x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, leaf["name"])]):
        return "it has another name"
    wanted: dict[type[x509.ExtensionType], tuple[bool, Any]] = {
        x509.SubjectAlternativeName: (False, set(map(_read_name, leaf["sans"]))),
        x509.BasicConstraints: (True, x509.BasicConstraints(ca=False, path_length=None)),
        x509.KeyUsage: (True, _DIGITAL_SIGNATURE),
        x509.ExtendedKeyUsage: (False, {_USAGES[usage] for usage in leaf["usages"]}),
        x509.SubjectKeyIdentifier: (
            False,
            x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()),
        ),
    }
    for kind, (critical, value) in wanted.items():
        try:
            extension: x509.Extension[Any] = certificate.extensions.get_extension_for_class(kind)
        except (x509.ExtensionNotFound, ValueError):
            return f"it has no {kind.__name__}"
        there = set(extension.value) if isinstance(value, set) else extension.value
        if there != value or extension.critical != critical:
            return f"it has another {kind.__name__}"
    return ""


_DIGITAL_SIGNATURE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _read_certificate(pem: str | None) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate((pem or "").encode())
    except ValueError:
        return None


def _read_certificates(pem: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        return []


def _name_of(authority: x509.Certificate) -> str:
    names = authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else authority.subject.rfc4514_string()


def _serial_of(pem: str | None) -> str:
    certificate = _read_certificate(pem)
    return f"{certificate.serial_number:x}" if certificate else ""


def _read_name(name: str) -> x509.GeneralName:
    kind, _, value = name.partition(":")
    if kind == "URI":
        return x509.UniformResourceIdentifier(value)
    if kind == "IP":
        return x509.IPAddress(ipaddress.ip_address(value))
    return x509.DNSName(value)


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    key, algorithm = authority.public_key(), certificate.signature_hash_algorithm
    if certificate.issuer != authority.subject or not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        assert algorithm is not None
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except (InvalidSignature, AssertionError):
        return False
    return True


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _is_old(certificate: x509.Certificate, renew_at: float) -> bool:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (ends - _now()) < (1 - renew_at) * (ends - begins)


def look_at_authority(folder: str, passphrase: str) -> dict[str, Any]:
    """Look at the CA in a folder of the control node.

    Returns ``problem``, why its key can't be used ("" when it can, or when there is none yet);
    ``complete``, whether key and certificate are there, belong together and have their modes;
    ``ends``, the certificate's end as YYYY-MM-DD; ``ends_soon``, within 60 days.
    """
    key_path, pem_path = Path(folder, "ca.key"), Path(folder, "ca.pem")
    found: dict[str, Any] = {"problem": "", "complete": False, "ends": "", "ends_soon": False}
    try:
        pem, key = _read(pem_path), _read(key_path)
    except OSError as error:
        found["problem"] = (
            f"{error.filename} can't be read ({error.strerror}); give {folder} and all that is in "
            f"it back to the user who runs this (sudo chown -R USER {folder})."
        )
        return found
    public, found["problem"] = _open_key(key_path, key, passphrase)
    certificate = _read_certificate(pem.decode("ascii", "replace"))
    if certificate is None:
        return found
    if not key:
        found["problem"] = (
            f"{pem_path} is there but {key_path} is not; restore the key from your backup. Without "
            f"one, move {pem_path} away, and run playbooks/rotate_ca.yml with -e ca_replace=true, "
            f"which makes another CA."
        )
    ends = certificate.not_valid_after_utc
    found["ends"] = f"{ends:%Y-%m-%d}"
    found["ends_soon"] = ends < _now() + datetime.timedelta(days=60)
    found["complete"] = (
        public is not None
        and certificate.public_key() == public
        and _has_modes({Path(folder): _FOLDER, key_path: _SECRET, pem_path: _PUBLIC})
    )
    return found


def find_foreign_authorities(
    found: Iterable[Mapping[str, str]], folder: str
) -> list[dict[str, str]]:
    """Return what hosts trust, each once; nothing when one of our CAs is among it.

    ``found`` are the texts that are trusted together: ``ca`` and ``crl``; ``folder`` is that of our
    CA on the control node. A host that trusts another, while one trusts ours, has missed a
    rotation, and is only to be brought along. Returned are ``ca``, ``crl``, and of the first
    certificate the common name (``name``) and the SHA-256 fingerprint in hexadecimal digits
    (``fingerprint``).
    """
    ours = {
        certificate
        for path in (Path(folder, name, "ca.pem") for name in ("", "next", "previous"))
        if path.is_file()
        for certificate in _read_certificates(path.read_text())
    }
    foreign = []
    for texts in found:
        trusted = _read_certificates(texts["ca"])
        if not trusted:
            continue
        if not ours.isdisjoint(trusted):
            return []
        entry = {
            "ca": texts["ca"],
            "crl": texts["crl"],
            "name": _name_of(trusted[0]),
            "fingerprint": trusted[0].fingerprint(hashes.SHA256()).hex(),
        }
        if entry not in foreign:
            foreign.append(entry)
    return foreign


def find_due_crls(folders: Iterable[str], revoked: Iterable[Mapping[str, str]]) -> list[str]:
    """Return those of the CAs' folders in which a CRL has to be made.

    ``revoked`` are the certificates that were revoked, with ``issuer`` (the CA's common name) and
    ``serial`` in hexadecimal digits.
    """
    entries = list(revoked)
    return [
        folder
        for folder in folders
        # The key of a CA that is replaced may be lost: its last CRL is all there is.
        if Path(folder, "ca.key").is_file() and not _is_crl_current(Path(folder), entries)
    ]


def _read(path: Path) -> bytes:
    """Return what is in a file, nothing when it is not there. Raises OSError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _open_key(path: Path, pem: bytes, passphrase: str) -> tuple[Any, str]:
    """Return the public half of a private key, and why it can't be used."""
    if not pem:
        return None, ""
    how = (
        f"give the one that it was made with ({path.parent}/passphrase, SEALRELAY_CA_PASSPHRASE or "
        f"ca_passphrase)."
    )
    if not passphrase:
        return None, f"The passphrase of {path} is missing; {how}"
    try:
        return load_pem_private_key(pem, passphrase.encode()).public_key(), ""
    except (ValueError, TypeError):
        return None, f"{path} can't be opened with this passphrase; {how}"


def _has_modes(modes: Mapping[Path, int]) -> bool:
    return all(
        path.exists() and stat.S_IMODE(path.stat().st_mode) == mode for path, mode in modes.items()
    )


def _is_crl_current(folder: Path, revoked: Iterable[Mapping[str, str]]) -> bool:
    """Whether a CA's CRL revokes its leaves among these, and a third of its time is left."""
    path = folder / "crl.pem"
    authority = _read_certificate((folder / "ca.pem").read_text())
    if authority is None or not _has_modes({path: _PUBLIC}):
        return False
    name = _name_of(authority)
    serials = {int(entry["serial"], 16) for entry in revoked if entry["issuer"] == name}
    try:
        crl = x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError):
        return False
    ends, key = crl.next_update_utc, authority.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not crl.is_signature_valid(key):
        return False
    if ends is None or {entry.serial_number for entry in crl} != serials:
        return False
    return (ends - _now()) >= (ends - crl.last_update_utc) / 3


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "add_signed": add_signed,
            "find_due_crls": find_due_crls,
            "find_foreign_authorities": find_foreign_authorities,
            "find_revoked_identities": find_revoked_identities,
            "find_unrecorded": find_unrecorded,
            "judge_leaves": judge_leaves,
            "list_puts": list_puts,
            "list_sans": list_sans,
            "look_at_authority": look_at_authority,
            "pick_judge": pick_judge,
        }
